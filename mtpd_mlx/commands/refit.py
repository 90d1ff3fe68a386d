"""mtpd refit."""

import argparse
from pathlib import Path
from typing import Any

from mtpd_mlx.options.schema import add_arguments as add_schema
from mtpd_mlx.options.schema import read_yaml
from mtpd_mlx.text.tables import format_table

HIDDEN = ("HeadsConfig", "LoraConfig")  # what the checkpoint says, and what is not trained


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from mtpd_mlx.options.train import TrainOptions

    parser.add_argument("checkpoint", help="heads checkpoint to adapt: a folder or a hub id")
    parser.add_argument("-c", "--config", help="YAML file with any of the options below; flags override it")
    add_schema(parser, *(c for c in TrainOptions.classes() if c.__name__ not in HIDDEN))


def run(args: argparse.Namespace) -> int:
    from mtpd_mlx.hub.pull import resolve_folder
    from mtpd_mlx.options.train import TrainOptions
    from mtpd_mlx.train.folder import resumed_options
    from mtpd_mlx.train.refit import refit, refit_options
    from mtpd_mlx.train.run import check_places
    from mtpd_mlx.train.screen import ProgressBar
    from mtpd_mlx.train.setup import gather

    flags = {k: v for k, v in vars(args).items() if k not in ("command", "config", "checkpoint")}
    file_values = read_yaml(Path(args.config)) if args.config else {}
    options = (resumed_options if (file_values | flags).get("resume") else TrainOptions.build)(file_values, flags)
    checkpoint = resolve_folder(args.checkpoint)
    refitted, _ = refit_options(checkpoint, options)
    check_places(refitted)
    ingredients = gather(refitted)
    with ProgressBar(options.optim.iters, f"refit {args.checkpoint}") as bar:
        result = bar.guard(options.run.out, lambda: refit(checkpoint, options, bar.show, ingredients))
    print(f"\nvalidation text (teacher-forced), heads of {args.checkpoint} on {options.model.model}:")
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
