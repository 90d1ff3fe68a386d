"""mtpd train."""

import argparse
from pathlib import Path
from typing import Any

from mtpd_mlx.options.schema import add_arguments as add_schema
from mtpd_mlx.options.schema import read_yaml


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from mtpd_mlx.options.train import TrainOptions

    parser.add_argument("-c", "--config", help="YAML file with any of the options below; flags override it")
    add_schema(parser, *TrainOptions.classes())


def run(args: argparse.Namespace) -> int:
    from mtpd_mlx.options.train import TrainOptions
    from mtpd_mlx.train.folder import resumed_options
    from mtpd_mlx.train.ranks import World
    from mtpd_mlx.train.run import check_places, train
    from mtpd_mlx.train.setup import gather, teacher_line

    flags = {k: v for k, v in vars(args).items() if k not in ("command", "config")}
    file_values = read_yaml(Path(args.config)) if args.config else {}
    if (file_values | flags).get("resume"):
        saved = World.launched().from_lead(lambda: resumed_options(file_values, flags).to_dict())
        options = TrainOptions.from_dict(saved)
    else:
        options = TrainOptions.build(file_values, flags)
    check_places(options)
    ingredients = gather(options)
    if World.launched().leads and (line := teacher_line(options)):
        print(line, flush=True)
    return report_outcome(options.run.out, train, options, ingredients)


def report_outcome(out: str, train: Any, options: Any, ingredients: Any) -> int:
    """Trains behind a progress bar and says what was kept."""
    from mtpd_mlx.train.ranks import World
    from mtpd_mlx.train.screen import ProgressBar

    leads = World.launched().leads
    with ProgressBar(options.optim.iters, visible=leads) as bar:
        outcome = bar.guard(out, lambda: train(options, ingredients, bar.show))
    if not leads:
        return 0
    progress = outcome.progress
    if not outcome.improved:
        start = progress.start or {}
        chosen_by = "main_loss" if options.model.base_trains else "tau"
        best = f"{chosen_by.replace('_', ' ')} {start.get(chosen_by, 0):.4g}"
        print(f"no step was better on validation than the start ({best}): nothing was replaced")
        return 3
    best = progress.best_eval
    print(f"kept step {progress.best_iteration}: tau {best['tau']:.3f}, main loss {best['main_loss']:.4f} -> {out}")
    return 0
