"""`mtpd refit`: heads adapted to a changed base.
Called by mtpd_mlx/cli.py."""

from shlex import quote
from typing import Any

from mtpd_mlx.options.base import TRAINING_OF_HEADS, RefitOptions
from mtpd_mlx.options.schema import Given
from mtpd_mlx.options.train import TrainOptions
from mtpd_mlx.text.tables import format_table

OPTIONS = (RefitOptions,)
FILE_OPTIONS = TRAINING_OF_HEADS
EXAMPLES = ("mtpd refit heads --model my_finetune --data my_data --out heads2",)


def run(named: RefitOptions, given: Given) -> int:
    from mtpd_mlx.hub.pull import resolve_folder
    from mtpd_mlx.train.folder import resumed_options
    from mtpd_mlx.train.refit import refit, refit_options
    from mtpd_mlx.train.run import check_places
    from mtpd_mlx.train.screen import ProgressBar
    from mtpd_mlx.train.setup import gather

    options = (resumed_options if given.resume else TrainOptions.build)(given.file, given.flags)
    checkpoint = resolve_folder(named.checkpoint)
    refitted, _ = refit_options(checkpoint, options)
    check_places(refitted)
    ingredients = gather(refitted)
    with ProgressBar(options.optim.iters, f"refit {quote(named.checkpoint)}") as bar:
        result = bar.guard(options.run.out, lambda: refit(checkpoint, options, bar.show, ingredients))
    print(f"\nvalidation text (teacher-forced), heads of {named.checkpoint} on {options.model.model}:")
    print(table(result.own, result.before, result.after))
    if not result.improved:
        print(f"no step was better than the heads as they were: they are kept, now for the new base -> {options.run.out}")
    else:
        print(f"tau {result.before['tau']:.3f} -> {result.after['tau']:.3f} -> {options.run.out}")
    return 0


def table(own: dict[str, Any] | None, before: dict[str, Any], after: dict[str, Any]) -> str:
    """CAR and AR per depth: on the old base (its own validation text), on the new one before and after."""
    columns = [("old base", own)] if own and len(own.get("car", [])) == len(after["car"]) else []
    columns += [("before", before), ("after", after)]
    heads = ["depth", *(f"{m} {name}" for name, _ in columns for m in ("CAR", "AR"))]
    rows = []
    for k in range(len(after["car"])):
        rows.append([str(k + 1), *(f"{e[m][k]:.3f}" for _, e in columns if e for m in ("car", "ar"))])
    rows.append(["tau", *(cell for _, e in columns if e for cell in (f"{e['tau']:.3f}", ""))])
    return format_table(rows, heads)
