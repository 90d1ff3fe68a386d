"""The demo's trainings: heads from scratch by CE and by MTP-D side by side, and the shipped heads extended to 8.
Called by demo/run.py."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from mtpd_mlx.demo.models import DemoModel
from mtpd_mlx.files.atomic import discard
from mtpd_mlx.model.heads import MTPHeads
from mtpd_mlx.options.cache import CacheConfig
from mtpd_mlx.options.train import (
    DataConfig,
    HeadsConfig,
    LoraConfig,
    LossConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    TrainOptions,
)
from mtpd_mlx.teacher_cache.job import CacheOptions, prepare
from mtpd_mlx.teacher_cache.writer import write_cache
from mtpd_mlx.train.extend import extend_checkpoint
from mtpd_mlx.train.run import train
from mtpd_mlx.train.screen import ProgressBar
from mtpd_mlx.train.setup import gather

Record = dict[str, Any]
Curve = list[Record]
See = Callable[[Record], None]
MANY = 10_000  # steps, more than fit into any plan's seconds


class TimeIsUp(KeyboardInterrupt):
    """Ends a run between two steps, as Ctrl-C does; what was learnt is in the heads."""


def make_cache(base: Path, data: Path, out: Path, rows: int, length: int) -> dict[str, Any]:
    """The states of the frozen base over the rows of `data`, which all runs then share. Returns how many tokens."""
    from tqdm import tqdm

    settings = CacheConfig(model=str(base), out=str(out), dequantize=True, compute_dtype="float32", overwrite=True)
    job = prepare(CacheOptions(settings, DataConfig(data=(str(data),), max_seq_length=length, batch_size=rows)))
    with tqdm(total=job.total_tokens, unit="tok", unit_scale=True, dynamic_ncols=True, disable=None) as bar:
        write_cache(job, bar.update)
    return {"tokens": job.total_tokens}


def options_of(model: DemoModel, base: Path, out: Path, loss: str, optim: OptimConfig, rows: int) -> TrainOptions:
    """Of one run. From the cache in the folder of `out` where the plan has one."""
    plan = model.plan
    place = ModelConfig(cache=str(out.parent / "cache")) if plan.cached else ModelConfig(model=str(base))
    often = 2 if plan.seconds is None else 1
    run = RunConfig(out=str(out), steps_per_eval=0, val_batches=4, save_every=0, steps_per_report=often, overwrite=True)
    return TrainOptions(
        replace(place, dequantize=True),
        HeadsConfig(),
        LossConfig(loss=loss),
        replace(plan.rows, data=(str(model.data),), batch_size=rows),
        optim,
        run,
        LoraConfig(),
    )


def train_arm(model: DemoModel, base: Path, out: Path, loss: str) -> tuple[MTPHeads, Curve]:
    """New heads on the frozen base: their last state, so that runs of equal steps, or of equal time, are compared."""
    plan = model.plan
    optim = plan.short if plan.seconds is None else replace(plan.short, iters=MANY)
    options = options_of(model, base, out, loss, optim, plan.rows.batch_size)
    options = replace(options, heads=HeadsConfig(draft_vocab=plan.draft_vocab))
    ingredients, curve = gather(options), Curve()
    if plan.seconds is None:
        with ProgressBar(optim.iters) as bar:
            train(options, ingredients, lambda record: collect(record, curve, bar.show))
    else:
        train_for(plan.seconds, curve, lambda see: train(options, ingredients, see))
        discard(out)  # a resume point
    return ingredients.heads, curve


def collect(record: Record, curve: Curve, show: See) -> None:
    """Shows a report; that of a step goes into the curve."""
    show(record)
    if "valid" not in record:
        curve.append(record)


def train_for(seconds: float, curve: Curve, run: Callable[[See], Any]) -> None:
    """Ends a run after so many seconds of training, between two steps. The first step, which compiles, is not counted."""
    from tqdm import tqdm

    with tqdm(total=seconds, unit="s", bar_format="{l_bar}{bar}| {postfix}", dynamic_ncols=True, disable=None) as bar:

        def show(record: Record) -> None:
            if "valid" not in record:
                bar.set_postfix_str(f"step {record['iter']}, {record['tokens_per_second']:.0f} tok/s, tau {record['tau']:.2f}")

        def see(record: Record) -> None:
            collect(record, curve, show)
            if curve:
                spent = curve[-1]["seconds"] - curve[0]["seconds"]
                bar.update(min(spent, seconds) - bar.n)
                if spent >= seconds:
                    raise TimeIsUp

        with suppress(TimeIsUp):
            run(see)


def extend_arm(model: DemoModel, base: Path, out: Path) -> tuple[Record, Curve]:
    """The shipped heads looped to 8 and the new ones trained; written to `out`. Returns steps and seconds, and the curve."""
    options = options_of(model, base, out, "mtpd", model.plan.extension, model.plan.extension_rows)
    options = replace(options, model=replace(options.model, model=str(base)))
    with ProgressBar(options.optim.iters) as bar:
        ((_, outcome),) = extend_checkpoint(model.heads, 8, options, lambda count: bar.show)
    return {"steps": outcome.progress.iteration, "seconds": outcome.progress.seconds}, outcome.curve
