"""`extend_checkpoint`: looped extension (MTP-D, arXiv 2603.23911). Base and old heads stay frozen.
Called by `mtpd extend`, api.py and the demo."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from mtpd_mlx.checkpoints.format import TUNED, CheckpointConfig, check_num_heads, read_config
from mtpd_mlx.checkpoints.run_files import OPTIONS_NAME, STAGES_NAME, forget_run
from mtpd_mlx.files.lock import locked
from mtpd_mlx.losses.definitions import per_head_weights
from mtpd_mlx.model.base import Base, say_if_slow
from mtpd_mlx.model.compute import cast
from mtpd_mlx.model.heads import MTPHeads
from mtpd_mlx.model.load_save import load_checkpoint, load_heads, reference_base, save_heads, versions
from mtpd_mlx.model.runtime import bound_queue, mx
from mtpd_mlx.options.resume import ON_RESUME
from mtpd_mlx.options.schema import flag, read_values
from mtpd_mlx.options.train import COPIES_SHARE, TrainOptions, with_rate
from mtpd_mlx.ranks.world import World
from mtpd_mlx.train.folder import check_free, read_run, taken_up
from mtpd_mlx.train.resume_point import Progress, latest_resume_point
from mtpd_mlx.train.run import Outcome, digest_of, train
from mtpd_mlx.train.setup import Ingredients, adapter_of, check_cache, resolve_tokenizer, rows_as_cached
from mtpd_mlx.train.step import compute_dtype


def stages(num_heads: int, to: int) -> list[int]:
    """The head counts passed through: each stage at most doubles. 4 -> 16 is [8, 16]."""
    check_num_heads(to, "--to")
    if to <= num_heads:
        raise ValueError(f"--to: got {to}, expected more than the checkpoint's {num_heads} heads")
    steps = []
    while num_heads < to:
        num_heads = min(2 * num_heads, to)
        steps.append(num_heads)
    return steps


def loop_heads(base: Base, heads: MTPHeads, to: int) -> MTPHeads:
    """A cascade of `to` heads whose head m+j is a copy of head j (m = number of given heads, to <= 2m)."""
    if not heads.num_heads < to <= 2 * heads.num_heads:
        raise ValueError(f"loop: got {to} heads, expected {heads.num_heads + 1}..{2 * heads.num_heads}")
    from mlx.utils import tree_map

    longer = MTPHeads(base, to, heads.hidden_source, heads.post_norms)
    longer.draft_among(heads.draft_tokens)
    for j, head in enumerate(longer.heads):
        source = heads.heads[j % heads.num_heads]
        head.update(tree_map(lambda w: w + 0, source.parameters()))  # copies: the compiled step must not see aliases
    mx.eval(longer.parameters())
    return longer


def loop_checkpoint(checkpoint: Path, to: int, out: Path, overwrite: bool, model: str | None = None) -> None:
    """The training-free extension: copies only."""
    counts = stages(read_config(checkpoint).num_heads, to)
    with locked(out):
        check_free(out, overwrite)
        base, heads, config = load_checkpoint(checkpoint, model)
        for count in counts:
            heads = loop_heads(base, heads, count)
        target = reference_base(base, out, model or config.base.locate(checkpoint))
        record = config.record | {"extended": {"from_heads": config.num_heads, "trained": False}, "versions": versions()}
        for measured in ("eval", TUNED):  # on the shorter cascade
            record.pop(measured, None)
        forget_run(out, keep=checkpoint)
        save_heads(out, heads, CheckpointConfig(to, heads.hidden_source, target, record=record))


def stage_folder(out: Path, count: int, to: int) -> Path:
    return out if count == to else out / STAGES_NAME / str(count)


def extend_options(file_values: dict[str, Any], flags: dict[str, Any], num_heads: int, to: int) -> TrainOptions:
    """The options of an extension, or of the interrupted one in --out. ValueError for what an extension does not do."""
    given = read_values(TrainOptions.classes(), file_values, flags)
    for name in ("train", "model_config", "init_heads"):
        if given.get(name) not in (None, "heads"):
            raise ValueError(f"{flag(name)} {given[name]}: not for mtpd extend, which trains new heads on a frozen base")
    options = TrainOptions.build({}, given)
    if not options.run.resume:
        return options
    out, overwrite = options.run.out, options.run.overwrite
    named = {name: value for name, value in given.items() if name not in ("num_heads", "hidden_source")}
    folders = {count: stage_folder(Path(out), count, to) for count in stages(num_heads, to)}
    begun = {count: folder for count, folder in folders.items() if (folder / OPTIONS_NAME).is_file()}
    if not begun:
        raise ValueError(f"--resume: {out} holds no interrupted extension to {to} heads ({OPTIONS_NAME} missing)")
    for count, folder in begun.items():
        saved = read_run(folder)
        if (held := saved.options.get("num_heads")) != count:
            raise ValueError(f"--resume: the run in {folder} trains {held} heads, not {count}")
        options = taken_up(folder, named, finished=True)
        # Heads of a run that came to its end are there to stay.
        overwrite = overwrite or (saved.options.get("overwrite") is True and not (saved.finished and count == to))
        if not saved.finished:
            break  # what later folders hold is an earlier run's
    # A stage names the base that the checkpoint does, which says more (an adapter).
    model = replace(options.model, model=given.get("model"))
    return replace(options, model=model, run=replace(options.run, out=out, resume=True, overwrite=overwrite))


def extend_checkpoint(
    checkpoint: Path, to: int, options: TrainOptions, show: Callable[[int], Callable[[dict[str, Any]], None]]
) -> list[tuple[int, Outcome]]:
    """Trains each stage; `show(count)` gives the reporter of a stage. The last stage is written to `out`. On --resume stages
    that had come to their end are taken as they are."""
    bound_queue()
    out = Path(options.run.out)
    if out.resolve() == checkpoint.resolve():  # its copies would replace the heads that --resume begins with
        raise ValueError(f"--out {out}: is the checkpoint itself; use another folder")
    planned = stages(num_heads := read_config(checkpoint).num_heads, to)
    for before, count in zip([num_heads, *planned], planned, strict=False):  # now, not when a later stage begins
        per_head_weights(options.loss.alpha, count - before, f"--alpha (new heads of stage {count})")
        per_head_weights(options.loss.beta, count - before, f"--beta (new heads of stage {count})")
    world = World.launched()
    with world.locked(out):
        if not options.run.resume:
            world.from_lead(lambda: check_free(out, options.run.overwrite))
        return _train_stages(checkpoint, planned, options, show)


def _train_stages(
    checkpoint: Path, planned: list[int], options: TrainOptions, show: Callable[[int], Callable[[dict[str, Any]], None]]
) -> list[tuple[int, Outcome]]:
    out, to, cfg = Path(options.run.out), planned[-1], options.model
    cached = cfg.cache is not None
    base, heads, config = load_checkpoint(
        checkpoint, cfg.model, dequantize=cfg.dequantize, ends_only=cached, adapter=adapter_of(cfg)
    )
    if cfg.cache is not None:
        check_cache(Path(cfg.cache).expanduser(), base.fingerprint, str(base.path))
    if not cached:
        say_if_slow(base)
    cast(base.model, compute_dtype(options.optim))
    name = cfg.model or config.base.locate(checkpoint)
    assert base.path is not None
    tokenizer = resolve_tokenizer(cfg.tokenizer) if cfg.tokenizer else base.path
    if not options.run.resume:
        World.launched().from_lead(lambda: forget_run(out, keep=checkpoint))
    outcomes = []
    for count in planned:
        folder = stage_folder(out, count, to)
        resumed = options.run.resume and latest_resume_point(folder) is not None
        stage = replace(
            with_rate(rows_as_cached(options), base.hidden_size, COPIES_SHARE),
            run=replace(options.run, out=str(folder), resume=resumed),
            heads=replace(options.heads, num_heads=count, hidden_source=heads.hidden_source),
            model=replace(options.model, model=name, train="heads"),
        )
        if options.run.resume and is_finished(folder, stage, heads):
            outcomes.append((count, earlier_outcome(folder)))
        else:
            if folder != out and not resumed and (folder / OPTIONS_NAME).is_file():
                shutil.rmtree(folder, ignore_errors=True)  # of an earlier extension
            ingredients = Ingredients(base, loop_heads(base, heads, count), tokenizer, name, first_trained=heads.num_heads)
            outcomes.append((count, train(stage, ingredients, show(count))))
        heads, _ = load_heads(folder, base)
    return outcomes


def is_finished(folder: Path, stage: TrainOptions, heads: MTPHeads) -> bool:
    """Whether this very stage, with these options and from these heads, has come to its end in `folder`."""
    if not (folder / OPTIONS_NAME).is_file() or not (saved := read_run(folder)).finished:
        return False
    same = {k: v for k, v in saved.options.items() if k not in ON_RESUME}
    wanted = {k: v for k, v in stage.to_dict().items() if k not in ON_RESUME}
    return same == wanted and saved.identity.get("heads_to_extend") == digest_of(heads.heads)


def earlier_outcome(folder: Path) -> Outcome:
    """What a stage that had come to its end found."""
    evaluation = read_config(folder).record["eval"]
    progress = Progress(best_iteration=evaluation["iteration"], best_eval=evaluation["validation"], start=evaluation["start"])
    return Outcome(progress, [], evaluation["iteration"] != 0)
