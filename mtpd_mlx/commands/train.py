"""`mtpd train`: MTP heads for a model, or model and heads together.
Called by mtpd_mlx/cli.py."""

from typing import Any

from mtpd_mlx.options.schema import Given
from mtpd_mlx.options.train import TrainOptions, kept_by

FILE_OPTIONS = TrainOptions.classes()
EXAMPLES = ("mtpd train --model Qwen/Qwen3-0.6B --data my_data --out heads --iters 1000", "mtpd train --resume --out heads")


def run(given: Given) -> int:
    from mtpd_mlx.ranks.world import World
    from mtpd_mlx.train.folder import resumed_options
    from mtpd_mlx.train.run import check_places, train
    from mtpd_mlx.train.setup import gather, heads_as_given, teacher_line

    if given.resume:
        saved = World.launched().from_lead(lambda: resumed_options(given.file, given.flags).to_dict())
        options = TrainOptions.from_dict(saved)
    else:
        options = heads_as_given(TrainOptions.build(given.file, given.flags))
    check_places(options)
    ingredients = gather(options)
    if World.launched().leads and (line := teacher_line(options)):
        print(line, flush=True)
    return report_outcome(options.run.out, train, options, ingredients)


def report_outcome(out: str, train: Any, options: Any, ingredients: Any) -> int:
    """Trains behind a progress bar and says what was kept."""
    from mtpd_mlx.ranks.world import World
    from mtpd_mlx.train.screen import ProgressBar

    leads = World.launched().leads
    with ProgressBar(options.optim.iters, visible=leads) as bar:
        outcome = bar.guard(out, lambda: train(options, ingredients, bar.show))
    if not leads:
        return 0
    progress = outcome.progress
    if not outcome.improved:
        start = progress.start or {}
        print(f"no step was better on validation than the start ({figure(options, start)}): nothing was replaced")
        return 3
    best = progress.best_eval
    print(f"kept step {progress.best_iteration}: tau {best['tau']:.3f}, main loss {best['main_loss']:.4f} -> {out}")
    return 0


def figure(options: TrainOptions, evaluation: dict[str, Any]) -> str:
    """What --keep goes by."""
    if kept_by(options.run, options.model.base_trains) == "tau":
        return f"tau {evaluation.get('tau', 0):.4g}"
    if options.model.base_trains:
        return f"main loss {evaluation.get('main_loss', 0):.4g}"
    return f"the heads' loss {sum(evaluation.get('head_loss', [])):.4g}"
