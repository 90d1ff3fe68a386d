"""mtpd distill-data."""

import argparse
from pathlib import Path

from mtpd_mlx.options.schema import add_arguments as add_schema
from mtpd_mlx.options.schema import build, read_yaml


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from mtpd_mlx.options.distill import DistillConfig

    parser.add_argument("-c", "--config", help="YAML file with any of the options below; flags override it")
    add_schema(parser, DistillConfig)


def run(args: argparse.Namespace) -> int:
    from tqdm import tqdm

    from mtpd_mlx.data.own_text import distill, load_work, resumed_config
    from mtpd_mlx.options.distill import DistillConfig

    flags = {k: v for k, v in vars(args).items() if k not in ("command", "config")}
    file_values = read_yaml(Path(args.config)) if args.config else {}
    resume = (file_values | flags).get("resume")
    cfg = resumed_config(file_values, flags) if resume else build((DistillConfig,), file_values, flags)[0]
    work = load_work(cfg)
    with tqdm(total=len(work.prompts), unit="prompt", dynamic_ncols=True) as bar:
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
            print(f"interrupted; continue with: mtpd distill-data --resume --out {cfg.out}")
            raise
    print(", ".join(f"{name}: {count} rows" for name, count in counts.items()) + f" -> {cfg.out}")
    return 0
