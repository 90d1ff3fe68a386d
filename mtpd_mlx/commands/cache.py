"""mtpd cache."""

import argparse
from pathlib import Path

from mtpd_mlx.options.schema import add_arguments as add_schema
from mtpd_mlx.options.schema import read_yaml


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from mtpd_mlx.options.cache import CacheConfig
    from mtpd_mlx.options.train import DataConfig

    parser.add_argument("-c", "--config", help="YAML file with any of the options below; flags override it")
    add_schema(parser, CacheConfig, DataConfig)


def run(args: argparse.Namespace) -> int:
    from mtpd_mlx.teacher_cache.writer import CacheOptions, plan_line, prepare, resumed_options, write_cache

    flags = {k: v for k, v in vars(args).items() if k not in ("command", "config")}
    file_values = read_yaml(Path(args.config)) if args.config else {}
    resume = (file_values | flags).get("resume")
    options = resumed_options(file_values, flags) if resume else CacheOptions.build(file_values, flags)
    out = options.cache.out
    job = prepare(options)
    for problem in job.damaged:
        print(f"{problem}; made again")
    print(plan_line(job), flush=True)
    from tqdm import tqdm

    done = job.total_tokens - job.missing_tokens
    with tqdm(total=job.total_tokens, initial=done, unit="tok", unit_scale=True, dynamic_ncols=True) as bar:
        try:
            index = write_cache(job, bar.update)
        except KeyboardInterrupt:
            bar.close()
            print(f"interrupted; continue with: mtpd cache --resume --out {out}")
            raise
    shards = [shard for split in index.splits.values() for shard in split.shards]
    print(f"{job.total_tokens:,} tokens in {len(shards)} shard(s), {sum(s.bytes for s in shards) / 1e6:,.2f} MB -> {out}")
    return 0
