"""mtpd distill-data."""

from shlex import quote

from mtpd_mlx.options.distill import DistillConfig
from mtpd_mlx.options.schema import Given, build

FILE_OPTIONS = (DistillConfig,)
EXAMPLES = (
    "mtpd distill-data --model Qwen/Qwen3-0.6B --prompts prompts.jsonl --out own",
    "mtpd train --model Qwen/Qwen3-0.6B --data own --out heads",
)


def run(given: Given) -> int:
    from tqdm import tqdm

    from mtpd_mlx.data.own_text import distill, load_work, resumed_config

    cfg = resumed_config(given.file, given.flags) if given.resume else build((DistillConfig,), given.file, given.flags)[0]
    work = load_work(cfg)
    with tqdm(total=len(work.prompts), unit="prompt", dynamic_ncols=True, disable=None) as bar:
        made = 0

        def show(prompts: int, tokens: int) -> None:
            nonlocal made
            made += tokens
            bar.update(prompts)
            bar.set_postfix_str(f"{made} tokens, {made / max(bar.format_dict['elapsed'], 1e-9):.0f} tok/s")

        try:
            counts = distill(work, show)
        except KeyboardInterrupt:
            bar.close()
            print(f"interrupted; continue with: mtpd distill-data --resume --out {quote(cfg.out)}")
            raise
    print(", ".join(f"{name}: {count} rows" for name, count in counts.items()) + f" -> {cfg.out}")
    return 0
