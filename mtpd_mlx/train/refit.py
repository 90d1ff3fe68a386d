"""`refit`: heads adapted to another base. They are kept only if held-out text says that they are better.
Called by `mtpd refit`."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mtpd_mlx.checkpoints.format import CheckpointConfig, read_config
from mtpd_mlx.options.train import TrainOptions
from mtpd_mlx.train.run import Outcome, train
from mtpd_mlx.train.setup import Ingredients


@dataclass(frozen=True)
class Refit:
    """`own`: the validation that the heads had on their own base (None where the checkpoint does not say); `before`, `after`:
    on the new base, on the same held-out rows."""

    own: dict[str, Any] | None
    before: dict[str, Any]
    after: dict[str, Any]
    improved: bool


def refit_options(checkpoint: Path, options: TrainOptions) -> tuple[TrainOptions, CheckpointConfig]:
    """The options with the checkpoint's own number of heads, hidden source and weights. ValueError without a new base."""
    config = read_config(checkpoint)
    if options.model.model is None or options.model.base_trains or options.model.cache is not None:
        raise ValueError("--model: missing; name the new base, which stays frozen (--train heads, no --cache)")
    if Path(options.run.out).resolve() == checkpoint.resolve():
        raise ValueError(f"--out {options.run.out}: is the checkpoint itself; use another folder")
    begun_with = options.heads.init_heads
    if options.run.resume and begun_with != str(checkpoint):
        raise ValueError(f"--resume: the run in {options.run.out} adapts {begun_with}, not {checkpoint}")
    heads = replace(options.heads, num_heads=config.num_heads, hidden_source=config.hidden_source, init_heads=str(checkpoint))
    return replace(options, heads=replace(heads, allow_base_mismatch=True)), config


def refit(checkpoint: Path, options: TrainOptions, show: Callable[[dict[str, Any]], None], ingredients: Ingredients) -> Refit:
    """Trains the heads of `checkpoint` on the base of `options`. What is written is the best of all validations, the start
    among them: never worse heads than those that came in, by tau (--keep) on the held-out rows. `ingredients`: gathered from
    refit_options."""
    options, config = refit_options(checkpoint, options)
    origin = {"refit": {"from_fingerprint": config.base.fingerprint, "from_base": config.base.named}}
    outcome: Outcome = train(options, replace(ingredients, keep_start=True, record=origin), show)
    progress = outcome.progress
    own = config.record.get("eval", {}).get("validation")
    assert progress.start is not None
    return Refit(own, progress.start, progress.best_eval, progress.best_iteration != 0)
