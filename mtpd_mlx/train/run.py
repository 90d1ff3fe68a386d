"""`train`: from options to a finished checkpoint.
Called by `mtpd train`, `refit`, each stage of `extend`, api.py and the demo."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from mtpd_mlx.checkpoints.format import BaseRef, CheckpointConfig
from mtpd_mlx.data.dataset import find_source
from mtpd_mlx.files.atomic import discard
from mtpd_mlx.files.lock import check_unlocked
from mtpd_mlx.files.publish import stage_folder
from mtpd_mlx.losses.definitions import per_head_weights
from mtpd_mlx.losses.objective import Model
from mtpd_mlx.model.adapters import adapter_settings, write_adapter
from mtpd_mlx.model.heads import MTPHead
from mtpd_mlx.model.load_save import reference_base, save_heads, versions, write_base
from mtpd_mlx.model.runtime import mx
from mtpd_mlx.options.schema import as_dict
from mtpd_mlx.options.train import TrainOptions, with_rate
from mtpd_mlx.ranks.watch import LOST, stop_clearly
from mtpd_mlx.ranks.world import World
from mtpd_mlx.text.tokenizer import Tokenizer
from mtpd_mlx.train.folder import (
    BASE_NAME,
    TRAINED_PARTS,
    begin,
    check_free,
    finish,
    own_parts,
    parts_of,
    take_up,
)
from mtpd_mlx.train.loop import Run
from mtpd_mlx.train.reporting import reporter
from mtpd_mlx.train.resume_point import Progress
from mtpd_mlx.train.setup import Ingredients, choose_draft_tokens, load_data, rows_as_cached, stored_teacher_size
from mtpd_mlx.train.step import Stepper


@dataclass
class Outcome:
    """The end of a run: its progress, the reports of validation, and whether any step was better than the start."""

    progress: Progress
    curve: list[dict[str, Any]]
    improved: bool


def check_places(options: TrainOptions) -> None:
    """For before a base is loaded, which may take long: ValueError where there is no data, --out is in use or held, or the
    loss has weights for another number of heads."""
    if not options.run.resume:  # what a run was begun with fits
        for name, weights in (("--alpha", options.loss.alpha), ("--beta", options.loss.beta)):
            per_head_weights(weights, options.heads.num_heads, name)
    if options.model.cache is None:
        for name in options.data.data:
            find_source(name)
    for name in ("alpha", "beta"):
        per_head_weights(getattr(options.loss, name), options.heads.num_heads, name)
    out, part = Path(options.run.out), TRAINED_PARTS[options.model.train]
    again = options.run.resume
    World.launched().from_lead(lambda: check_unlocked(out) if again else check_free(out, options.run.overwrite, part))


def train(options: TrainOptions, ingredients: Ingredients, show: Callable[[dict[str, Any]], None]) -> Outcome:
    """Runs (or resumes) one training run, which holds `out`; the checkpoint there is the best one by validation. Heads that are
    there already stay until this run writes its own."""
    world, out = World.launched(), Path(options.run.out)
    with world.locked(out):
        return _train_in(out, options, ingredients, world, show)


def _train_in(
    out: Path, options: TrainOptions, ingredients: Ingredients, world: World, show: Callable[[dict[str, Any]], None]
) -> Outcome:
    base = ingredients.base
    if not options.run.resume:
        world.from_lead(lambda: check_free(out, options.run.overwrite, TRAINED_PARTS[options.model.train]))
    tokenizer = Tokenizer.from_folder(ingredients.tokenizer_folder, base.vocab_size)
    options = with_rate(rows_as_cached(options), base.hidden_size)
    base.check_length(options.data.max_seq_length)
    world.rows(options.data.batch_size)
    train_set, valid_set = load_data(options, tokenizer)
    choose_draft_tokens(ingredients.heads, options.heads.draft_vocab, train_set, base.vocab_size)
    again = f"continue with the same command and --resume (--out {out})"
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
    out, trains, extends = Path(options.run.out), options.model.train, ingredients.first_trained > 0
    checkpointed = options.optim.grad_checkpoint
    model = Model(
        ingredients.base, ingredients.heads, trains != "heads", ingredients.first_trained, checkpointed, trains == "lora"
    )
    stepper = Stepper(model, options.loss, options.optim, world, stored_teacher_size(options, ingredients.heads))
    record = _record(options, train_set, valid_set) | ingredients.record
    reference = None if trains == "joint" else reference_base(ingredients.base, out, ingredients.base_name)
    identity = _identity(record, reference, ingredients.heads.heads[: ingredients.first_trained])

    def save_best(progress: Progress) -> None:
        target = stage_trained(out, options, ingredients) or reference
        assert target is not None
        evaluation = {"iteration": progress.best_iteration, "validation": progress.best_eval, "start": progress.start}
        heads, part = ingredients.heads, TRAINED_PARTS[trains]
        left = own_parts(out) - parts_of(target)  # of the heads that are there
        config = CheckpointConfig(heads.num_heads, heads.hidden_source, target, None, record | {"eval": evaluation})
        save_heads(out, heads, config, parts=() if part is None else (part,))
        for name in left:
            discard(out / name)

    rows = list(islice(valid_set.iter_batches(options.data.batch_size), _limit(options.run.val_batches)))
    run = Run(
        model, stepper, train_set, rows, options.optim, options.run, save_best, save_start=ingredients.keep_start or extends
    )
    if options.run.resume:
        world.from_lead(lambda: take_up(out, identity))
        run.resume()
    service = world.on_lead(lambda: reporter(options))

    def tell(record: dict[str, Any]) -> None:
        show(record)
        if service is not None:
            service(record)

    if not options.run.resume:
        world.from_lead(lambda: begin(out, options.to_dict(), identity, extends))
    progress = run.run(tell)
    world.from_lead(lambda: finish(out))
    return Outcome(progress, run.curve, progress.best_iteration != 0)


def stage_trained(out: Path, options: TrainOptions, ingredients: Ingredients) -> BaseRef | None:
    """Writes what of the base trained where save_heads takes it from, and how a checkpoint names it. None: nothing did."""
    base, part = ingredients.base, TRAINED_PARTS[options.model.train]
    if part is None:
        return None
    if part == BASE_NAME:
        new = stage_folder(out / part, lambda folder: write_base(folder, base, ingredients.tokenizer_folder))
        return replace(reference_base(replace(base, path=new, adapter=None), out, str(new)), id=f"./{part}")
    settings = adapter_settings(options.lora)
    new = stage_folder(out / part, lambda folder: write_adapter(folder, base.model, settings))
    return replace(reference_base(replace(base, adapter=new), out, ingredients.base_name), adapter=f"./{part}")


def _identity(record: dict[str, Any], reference: BaseRef | None, frozen: list[MTPHead]) -> dict[str, str]:
    """Digests of what a run stands on and must find unchanged when it is resumed. A base that trains is in the resume point."""
    known = {f"{name}_rows": record["data"][f"{name}_sha256"] for name in ("train", "valid")}
    if reference is not None:
        known["base_weights"] = reference.fingerprint
    return known | ({"heads_to_extend": digest_of(frozen)} if frozen else {})


def digest_of(heads: list[MTPHead]) -> str:
    """sha256 of the heads' parameters in float32, to notice heads that changed."""
    from mlx.utils import tree_flatten

    digest = hashlib.sha256()
    for head in heads:
        flat: Any = tree_flatten(head.parameters())
        for _, w in flat:
            digest.update(np.array(w.astype(mx.float32)).tobytes())
    return f"sha256:{digest.hexdigest()}"


def _limit(val_batches: int) -> int | None:
    return max(val_batches, 1) if val_batches >= 0 else None


def _record(options: TrainOptions, train_set: Any, valid_set: Any) -> dict[str, Any]:
    """What a checkpoint says about its making."""
    values = options.to_dict()
    loss = as_dict(options.loss)
    data = {f"{name}_tokens": part.num_tokens for name, part in (("train", train_set), ("valid", valid_set))}
    data |= {f"{name}_sha256": part.sha256 for name, part in (("train", train_set), ("valid", valid_set))}
    places = ("out", "data", "model", "tokenizer", "cache", "model_config", "init_heads", "project_name", "report_to")
    idle = () if options.model.train == "lora" else tuple(as_dict(options.lora))
    training = {k: v for k, v in values.items() if k not in loss and k not in (*places, *idle)}
    return {"loss": loss, "data": data, "training": training, "versions": versions()}
