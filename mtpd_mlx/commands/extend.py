"""`mtpd extend`: more heads by looping.
Called by mtpd_mlx/cli.py."""

from pathlib import Path
from shlex import quote
from typing import Any

from mtpd_mlx.options.base import TRAINING_OF_HEADS, ExtendOptions
from mtpd_mlx.options.schema import Given, build, flag, read_values
from mtpd_mlx.options.train import ModelConfig, RunConfig
from mtpd_mlx.text.tables import format_table

OPTIONS = (ExtendOptions,)
FILE_OPTIONS = TRAINING_OF_HEADS
EXAMPLES = ("mtpd extend heads --to 8 --data my_data --out heads8", "mtpd extend heads --to 8 --train-free --out heads8")


def check(extend: ExtendOptions, given: Given) -> None:
    if extend.train_free:
        copied(given)


def copied(given: Given) -> dict[str, Any]:
    """What is given of the options that copying has. ValueError for another one, which would have no effect."""
    values = read_values(TRAINING_OF_HEADS, given.file, given.flags)
    for name in values:
        if name not in ("out", "overwrite", "model"):
            raise ValueError(f"{flag(name)}: not with --train-free, which copies heads and trains nothing")
    return values


def run(extend: ExtendOptions, given: Given) -> int:
    from mtpd_mlx.checkpoints.format import read_config
    from mtpd_mlx.hub.pull import resolve_folder
    from mtpd_mlx.train.extend import extend_checkpoint, extend_options, loop_checkpoint
    from mtpd_mlx.train.interrupt import Interrupted
    from mtpd_mlx.train.screen import ProgressBar
    from mtpd_mlx.train.setup import teacher_line

    checkpoint = resolve_folder(extend.checkpoint)
    if extend.train_free:
        run_cfg, cfg = build((RunConfig, ModelConfig), {}, copied(given))
        loop_checkpoint(checkpoint, extend.to, Path(run_cfg.out), run_cfg.overwrite, cfg.model)
        print(f"{extend.to} heads by copying -> {run_cfg.out}")
        return 0
    options = extend_options(given.file, given.flags, read_config(checkpoint).num_heads, extend.to)
    if line := teacher_line(options):
        print(line, flush=True)
    bars: list[ProgressBar] = []

    def show(count: int) -> Any:
        bars.append(ProgressBar(options.optim.iters, f"extend {quote(extend.checkpoint)} --to {extend.to}"))
        return bars[-1].show

    try:
        outcomes = extend_checkpoint(checkpoint, extend.to, options, show)
    except Interrupted as stop:
        if stop.resumable:
            bars[-1].close()
            print(f"interrupted; continue with: mtpd {bars[-1].command} --resume --out {quote(options.run.out)}")
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
