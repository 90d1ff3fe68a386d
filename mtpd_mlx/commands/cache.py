"""`mtpd cache`: hidden states and top logits of a frozen base over a data set, written to disk.
Called by mtpd_mlx/cli.py."""

from shlex import quote

from mtpd_mlx.options.cache import CacheConfig
from mtpd_mlx.options.schema import Given
from mtpd_mlx.options.train import DataConfig

FILE_OPTIONS = (CacheConfig, DataConfig)
EXAMPLES = ("mtpd cache --model Qwen/Qwen3-0.6B --data my_data --out cache", "mtpd train --cache cache --out heads")


def run(given: Given) -> int:
    from mtpd_mlx.teacher_cache.job import CacheOptions, plan_line, prepare, resumed_options
    from mtpd_mlx.teacher_cache.writer import write_cache

    options = (resumed_options if given.resume else CacheOptions.build)(given.file, given.flags)
    out = options.cache.out
    job = prepare(options)
    for problem in job.damaged:
        print(f"{problem}; made again")
    print(plan_line(job), flush=True)
    from tqdm import tqdm

    done = job.total_tokens - job.missing_tokens
    with tqdm(total=job.total_tokens, initial=done, unit="tok", unit_scale=True, dynamic_ncols=True, disable=None) as bar:
        try:
            index = write_cache(job, bar.update)
        except KeyboardInterrupt:
            bar.close()
            print(f"interrupted; continue with: mtpd cache --resume --out {quote(out)}")
            raise
    shards = [shard for split in index.splits.values() for shard in split.shards]
    print(f"{job.total_tokens:,} tokens in {len(shards)} shard(s), {sum(s.bytes for s in shards) / 1e6:,.2f} MB -> {out}")
    return 0
