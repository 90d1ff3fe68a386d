"""Looped extension (MTP-D, arXiv 2603.23911): m trained heads initialise the next m; base and old heads stay frozen."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from mtpd_mlx.base import Base
from mtpd_mlx.checkpoint import load_checkpoint, load_heads, save_heads, versions
from mtpd_mlx.checkpoint_format import CheckpointConfig, check_num_heads
from mtpd_mlx.heads import MTPHeads
from mtpd_mlx.ingredients import Ingredients, adapter_of, check_cache
from mtpd_mlx.mlx_runtime import mx
from mtpd_mlx.options import TrainOptions
from mtpd_mlx.resume import latest_resume_point
from mtpd_mlx.train_step import compute_dtype
from mtpd_mlx.training import Outcome, claim_folder, reference_base, train


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
    base, heads, config = load_checkpoint(checkpoint, model)
    counts = stages(heads.num_heads, to)
    claim_folder(out, overwrite)
    for count in counts:
        heads = loop_heads(base, heads, count)
    target = reference_base(base, out, model or config.base.locate(checkpoint))
    record = config.record | {"extended": {"from_heads": config.num_heads, "trained": False}, "versions": versions()}
    record.pop("eval", None)  # measured on the shorter cascade
    save_heads(out, heads, CheckpointConfig(to, heads.hidden_source, target, record=record))


def extend_checkpoint(
    checkpoint: Path, to: int, options: TrainOptions, show: Callable[[int], Callable[[dict[str, Any]], None]]
) -> list[tuple[int, Outcome]]:
    """Trains each stage; `show(count)` gives the reporter of a stage. The last stage is written to `out`."""
    out = Path(options.run.out)
    cached = options.model.cache is not None
    cfg = options.model
    base, heads, config = load_checkpoint(checkpoint, cfg.model, cfg.dequantize, ends_only=cached, adapter=adapter_of(cfg))
    if options.model.cache is not None:
        check_cache(Path(options.model.cache).expanduser(), config.base.fingerprint, str(checkpoint))
    base.model.set_dtype(compute_dtype(options.optim))
    name = options.model.model or config.base.locate(checkpoint)
    outcomes = []
    for count in stages(heads.num_heads, to):
        folder = out if count == to else out / "stages" / str(count)
        resume = options.run.resume and latest_resume_point(folder) is not None
        stage_run = replace(options.run, out=str(folder), resume=resume, overwrite=options.run.overwrite)
        stage = replace(
            options,
            run=stage_run,
            heads=replace(options.heads, num_heads=count, hidden_source=heads.hidden_source),
            model=replace(options.model, model=name, train="heads"),
        )
        longer = loop_heads(base, heads, count)
        assert base.path is not None
        ingredients = Ingredients(base, longer, base.path, name, first_trained=heads.num_heads)
        outcomes.append((count, train(stage, ingredients, show(count))))
        heads, _ = load_heads(folder, base)
    return outcomes
