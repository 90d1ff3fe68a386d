"""From options to a finished checkpoint: what `mtpd train` and each stage of `mtpd extend` do."""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from mtpd_mlx.base import Base
from mtpd_mlx.checkpoint import save_base, save_heads, versions
from mtpd_mlx.checkpoint_format import CONFIG_NAME, WEIGHTS_NAME, BaseRef, CheckpointConfig, write_json
from mtpd_mlx.distributed import World
from mtpd_mlx.ingredients import Ingredients, choose_draft_tokens, load_data, stored_teacher_size
from mtpd_mlx.objective import Model
from mtpd_mlx.options import OPTIONS_NAME, TrainOptions
from mtpd_mlx.rank_watch import LOST, stop_clearly
from mtpd_mlx.reporting import reporter
from mtpd_mlx.speculative.tokenizer import Tokenizer
from mtpd_mlx.train_step import Stepper
from mtpd_mlx.trainer import LOG_NAME, Progress, Run


def claim_folder(out: Path, overwrite: bool) -> None:
    """Makes the output folder, refusing to touch an existing checkpoint unless told. Fails early where it cannot write."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out}: exists and is not a folder")
    if (out / CONFIG_NAME).exists() or any(out.glob("resume-*")):
        if not overwrite:
            raise ValueError(f"--out {out}: holds a checkpoint already; use --resume, --overwrite or another folder")
        for old in [*out.glob("resume-*"), out / "base", out / "stages"]:
            shutil.rmtree(old, ignore_errors=True)
        for name in (CONFIG_NAME, WEIGHTS_NAME):
            (out / name).unlink(missing_ok=True)
    (out / LOG_NAME).unlink(missing_ok=True)  # a run killed before its first resume point leaves one
    out.mkdir(parents=True, exist_ok=True)
    probe = out / f".write-test-{os.getpid()}"
    probe.touch()
    probe.unlink()


def reference_base(base: Base, out: Path, named: str) -> BaseRef:
    """How a checkpoint in `out` names its base: a hub id as it is, a local folder relative to the checkpoint."""
    adapter = None if base.adapter is None else _from(out, base.adapter)
    kind = base.config["model_type"]
    return BaseRef(_from(out, named), base.fingerprint, kind, base.hidden_size, base.vocab_size, adapter=adapter)


def _from(out: Path, named: str | Path) -> str:
    local = Path(named).expanduser()
    if not local.is_dir():
        return str(named)
    relative = os.path.relpath(local.resolve(), out.resolve())
    return relative if relative.startswith("..") else f"./{relative}"


@dataclass
class Outcome:
    progress: Progress
    curve: list[dict[str, Any]]
    improved: bool


def train(options: TrainOptions, ingredients: Ingredients, show: Callable[[dict[str, Any]], None]) -> Outcome:
    """Runs (or resumes) one training run; the checkpoint in `out` is the best one by validation."""
    tokenizer = Tokenizer.from_folder(ingredients.tokenizer_folder)
    if tokenizer.vocab_size > ingredients.base.vocab_size:
        raise ValueError(
            f"tokenizer has {tokenizer.vocab_size} tokens, the base's vocabulary only {ingredients.base.vocab_size}"
        )
    train_set, valid_set = load_data(options, tokenizer)
    choose_draft_tokens(ingredients.heads, options.heads.draft_vocab, train_set, ingredients.base.vocab_size)
    world = World.launched()
    again = f"continue with the same command and --resume (--out {options.run.out})"
    try:
        with stop_clearly(world, again):
            return _train(options, ingredients, world, train_set, valid_set, show)
    except RuntimeError as error:
        if world.size == 1:
            raise
        raise ValueError(f"rank {world.rank}: {str(error).splitlines()[0]} ({LOST}); {again}") from error


def _train(
    options: TrainOptions,
    ingredients: Ingredients,
    world: World,
    train_set: Any,
    valid_set: Any,
    show: Callable[[dict[str, Any]], None],
) -> Outcome:
    out, joint = Path(options.run.out), options.model.train == "joint"

    def claim() -> None:
        if not options.run.resume:
            claim_folder(out, options.run.overwrite)
            write_json(out / OPTIONS_NAME, options.to_dict())

    world.from_lead(claim)
    model = Model(ingredients.base, ingredients.heads, joint, ingredients.first_trained, options.optim.grad_checkpoint)
    stepper = Stepper(model, options.loss, options.optim, world, stored_teacher_size(options, ingredients.heads))
    record = _record(options, train_set, valid_set) | ingredients.record
    reference = None if joint else reference_base(ingredients.base, out, ingredients.base_name)

    def save_best(progress: Progress) -> None:
        target = reference
        if target is None:
            save_base(out / "base", ingredients.base, ingredients.tokenizer_folder)
            target = reference_base(replace(ingredients.base, path=out / "base", adapter=None), out, str(out / "base"))
        evaluation = {"iteration": progress.best_iteration, "validation": progress.best_eval, "start": progress.start}
        heads = ingredients.heads
        save_heads(
            out,
            heads,
            CheckpointConfig(heads.num_heads, heads.hidden_source, target, None, record | {"eval": evaluation}),
        )

    report = reporter(options) if world.leads else None

    def tell(record: dict[str, Any]) -> None:
        show(record)
        if report is not None:
            report(record)

    rows = list(islice(valid_set.iter_batches(options.data.batch_size), _limit(options.run.val_batches)))
    keep_start = ingredients.keep_start or ingredients.first_trained > 0
    run = Run(model, stepper, train_set, rows, options.optim, options.run, save_best, save_start=keep_start)
    if options.run.resume:
        run.resume()
    progress = run.run(tell)
    return Outcome(progress, run.curve, progress.best_iteration != 0)


def _limit(val_batches: int) -> int | None:
    return max(val_batches, 1) if val_batches >= 0 else None


def _record(options: TrainOptions, train_set: Any, valid_set: Any) -> dict[str, Any]:
    """What a checkpoint says about its making."""
    values = options.to_dict()
    loss = {k: values[k] for k in ("loss", "alpha", "beta", "top_n", "eta", "kl_direction", "detach_teacher")}
    data = {f"{name}_tokens": part.num_tokens for name, part in (("train", train_set), ("valid", valid_set))}
    data |= {f"{name}_sha256": part.sha256 for name, part in (("train", train_set), ("valid", valid_set))}
    places = ("out", "data", "model", "tokenizer", "cache", "model_config", "init_heads", "project_name", "report_to")
    training = {k: v for k, v in values.items() if k not in loss and k not in places}
    return {"loss": loss, "data": data, "training": training, "versions": versions()}
