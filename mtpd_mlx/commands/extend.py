"""mtpd extend."""

import argparse
from pathlib import Path
from typing import Any

from mtpd_mlx.options.schema import add_arguments as add_schema
from mtpd_mlx.options.schema import build, read_yaml
from mtpd_mlx.text.tables import format_table

HIDDEN = ("HeadsConfig", "LoraConfig")  # what an extension takes from the checkpoint, and what it does not train


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from mtpd_mlx.options.train import TrainOptions

    parser.add_argument("checkpoint", help="heads checkpoint to extend")
    parser.add_argument("--to", type=int, required=True, help="number of heads wanted, for example 8 or 16")
    parser.add_argument("--train-free", action="store_true", help="copy only: no data, no training")
    parser.add_argument("-c", "--config", help="YAML file with any of the options below; flags override it")
    add_schema(parser, *(c for c in TrainOptions.classes() if c.__name__ not in HIDDEN))


def run(args: argparse.Namespace) -> int:
    from mtpd_mlx.checkpoints.format import read_config
    from mtpd_mlx.hub.pull import resolve_folder
    from mtpd_mlx.options.train import RunConfig
    from mtpd_mlx.train.extend import extend_checkpoint, extend_options, loop_checkpoint
    from mtpd_mlx.train.interrupt import Interrupted
    from mtpd_mlx.train.screen import ProgressBar
    from mtpd_mlx.train.setup import teacher_line

    own = ("command", "config", "checkpoint", "to", "train_free")
    flags = {k: v for k, v in vars(args).items() if k not in own}
    checkpoint = resolve_folder(args.checkpoint)
    if args.train_free:
        (run_cfg,) = build((RunConfig,), {}, flags)
        loop_checkpoint(checkpoint, args.to, Path(run_cfg.out), run_cfg.overwrite, flags.get("model"))
        print(f"{args.to} heads by copying -> {run_cfg.out}")
        return 0
    file_values = read_yaml(Path(args.config)) if args.config else {}
    options = extend_options(file_values, flags, read_config(checkpoint).num_heads, args.to)
    if line := teacher_line(options):
        print(line, flush=True)
    bars: list[ProgressBar] = []

    def show(count: int) -> Any:
        bars.append(ProgressBar(options.optim.iters, f"extend {args.checkpoint} --to {args.to}"))
        return bars[-1].show

    try:
        outcomes = extend_checkpoint(checkpoint, args.to, options, show)
    except Interrupted as stop:
        if stop.resumable:
            bars[-1].close()
            print(f"interrupted; continue with: mtpd {bars[-1].command} --resume --out {options.run.out}")
        raise
    finally:
        for bar in bars:
            bar.close()
    for count, outcome in outcomes:
        print(f"\n{count} heads, validation text (teacher-forced):")
        print(before_after(outcome.progress.start or {}, outcome.progress.best_eval))
    return 0


def before_after(before: dict[str, Any], after: dict[str, Any]) -> str:
    """CAR and AR per depth, copied heads against trained ones, and tau."""
    rows = [[str(k + 1), *(f"{e[m][k]:.3f}" for e in (before, after) for m in ("car", "ar"))] for k in range(len(after["car"]))]
    rows.append(["tau", f"{before['tau']:.3f}", "", f"{after['tau']:.3f}", ""])
    return format_table(rows, ["depth", "CAR copied", "AR copied", "CAR trained", "AR trained"])
