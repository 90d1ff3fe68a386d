"""From options to a finished checkpoint: what `mtpd train` and each stage of `mtpd extend` do."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from mtpd_mlx.base import Base, load_base, new_base, resolve_model
from mtpd_mlx.cache.reader import CachedDataset, open_cache
from mtpd_mlx.checkpoint import load_heads, save_base, save_heads, versions
from mtpd_mlx.checkpoint_format import CONFIG_NAME, WEIGHTS_NAME, BaseRef, CheckpointConfig, write_json
from mtpd_mlx.config import HeadsConfig, LossConfig, ModelConfig, OptimConfig, RunConfig
from mtpd_mlx.data import DataConfig, load_dataset
from mtpd_mlx.data.order import add_counts
from mtpd_mlx.distributed import LOST, World, stop_clearly
from mtpd_mlx.fingerprint import fingerprint_base
from mtpd_mlx.heads import MTPHeads, init_heads
from mtpd_mlx.mlx_runtime import mx
from mtpd_mlx.objective import Model
from mtpd_mlx.reporting import reporter
from mtpd_mlx.schema import as_dict, build
from mtpd_mlx.speculative.tokenizer import Tokenizer
from mtpd_mlx.train_step import Stepper, compute_dtype
from mtpd_mlx.trainer import LOG_NAME, Progress, Run

OPTIONS_NAME = "train_options.json"


@dataclass(frozen=True)
class TrainOptions:
    model: ModelConfig
    heads: HeadsConfig
    loss: LossConfig
    data: DataConfig
    optim: OptimConfig
    run: RunConfig

    @classmethod
    def classes(cls) -> tuple[type, ...]:
        return (ModelConfig, HeadsConfig, LossConfig, DataConfig, OptimConfig, RunConfig)

    @classmethod
    def build(cls, file_values: dict[str, Any], flags: dict[str, Any]) -> "TrainOptions":
        return cls(*build(cls.classes(), file_values, flags))

    def to_dict(self) -> dict[str, Any]:
        return as_dict(*(getattr(self, f.name) for f in fields(self)))


def resumed_options(flags: dict[str, Any]) -> TrainOptions:
    """The options an interrupted run was started with; flags that say otherwise are refused."""
    out = Path(flags.get("out", RunConfig.out))
    file = out / OPTIONS_NAME
    try:
        saved = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"--resume: {out} holds no interrupted run ({OPTIONS_NAME} unreadable)") from error
    for name, value in flags.items():
        if name in saved and name not in ("resume", "overwrite", "out") and _plain(value) != saved[name]:
            raise ValueError(f"--resume: {name} is {_plain(value)!r}, the interrupted run has {saved[name]!r}")
    saved |= {"out": str(out), "resume": True, "overwrite": False}
    return TrainOptions.build(saved, {})


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, (tuple, list)) else value


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
    assert base.path is not None
    local = Path(named).expanduser()
    identity = named
    if local.is_dir():
        relative = os.path.relpath(local.resolve(), out.resolve())
        identity = relative if relative.startswith("..") else f"./{relative}"
    return BaseRef(identity, fingerprint_base(base.path), base.config["model_type"], base.hidden_size, base.vocab_size)


@dataclass
class Ingredients:
    base: Base
    heads: MTPHeads
    tokenizer_folder: Path
    base_name: str
    first_trained: int = 0


def gather(options: TrainOptions) -> Ingredients:
    """Loads or creates base and heads as the options say."""
    cfg = options.model
    compute = compute_dtype(options.optim)
    if cfg.cache is not None:
        base, folder, name = base_of_cache(cfg, compute)
    elif cfg.model is not None:
        # A frozen base is held in the compute dtype (of a quantised one the scales: other types would promote every
        # product to float32); a base that trains keeps float32 master weights.
        base = load_base(cfg.model, dequantize=cfg.dequantize or cfg.train == "joint")
        base.model.set_dtype(mx.float32 if cfg.train == "joint" else compute)
        folder = resolve_tokenizer(cfg.tokenizer) if cfg.tokenizer else resolve_model(cfg.model)
        name = cfg.model
    elif cfg.model_config is not None and cfg.train == "joint":
        if cfg.tokenizer is None:
            raise ValueError("--model-config needs --tokenizer, the folder with the tokenizer to use")
        try:
            config = json.loads(Path(cfg.model_config).read_text())
        except (OSError, ValueError) as error:
            raise ValueError(f"--model-config {cfg.model_config}: {str(error).splitlines()[0]}") from error
        base, folder, name = new_base(config, options.run.seed), resolve_tokenizer(cfg.tokenizer), ""
    else:
        raise ValueError("no base: give --model, or --model-config with --train joint to train one from scratch")
    if options.heads.init_heads:
        heads, _ = load_heads(Path(options.heads.init_heads), base)
        if heads.num_heads != options.heads.num_heads or heads.hidden_source != options.heads.hidden_source:
            raise ValueError(
                f"--init-heads {options.heads.init_heads}: has {heads.num_heads} heads ({heads.hidden_source}), "
                f"expected {options.heads.num_heads} ({options.heads.hidden_source})"
            )
    else:
        heads = init_heads(base, options.heads.num_heads, options.heads.hidden_source, options.run.seed)
    return Ingredients(base, heads, folder, name)


def base_of_cache(cfg: ModelConfig, compute: mx.Dtype) -> tuple[Base, Path, str]:
    """Embedding, final norm and output head of the base that a cache was made with; its folder and name."""
    folder = Path(str(cfg.cache)).expanduser()
    if cfg.train == "joint":
        raise ValueError("--cache: holds the states of a frozen base, and --train joint would change it")
    name = cfg.model or open_cache(folder).base.locate(folder)
    base = load_base(name, dequantize=cfg.dequantize, ends_only=True)
    assert base.path is not None
    check_cache(folder, fingerprint_base(base.path), name)
    base.model.set_dtype(compute)
    return base, base.path, name


def check_cache(folder: Path, fingerprint: str, name: str) -> None:
    """Refuses a cache that was made with another base than that of `name`."""
    made_with = open_cache(folder).base.fingerprint
    if fingerprint != made_with:
        raise ValueError(f"--cache {folder}: made with another base ({made_with[:19]}..., {name}: {fingerprint[:19]}...)")


def load_data(options: TrainOptions, tokenizer: Tokenizer) -> tuple[Any, Any]:
    """Training and validation rows, of text or of a cache."""
    if options.model.cache is not None:
        folder, batch_size = Path(options.model.cache).expanduser(), options.data.batch_size
        named = str(folder)
        parts = [CachedDataset(folder, s, batch_size, options.run.seed) for s in open_cache(folder).splits]
        train_set, valid_set = parts[0], parts[1] if len(parts) > 1 else None
    else:
        named = ", ".join(options.data.data)
        splits = load_dataset(options.data, tokenizer, options.run.seed)
        train_set, valid_set = splits.train, splits.valid  # type: ignore[assignment]
    if valid_set is None or valid_set.num_rows == 0:
        raise ValueError(f"{named}: no validation text (valid.jsonl), which chooses the heads that are kept")
    return train_set, valid_set


def choose_draft_tokens(heads: MTPHeads, size: int | None, train_set: Any, vocab_size: int) -> None:
    """Gives heads that have none the `size` most frequent tokens of the training rows (lower ids first among equals)."""
    held = heads.draft_tokens
    if held is not None and size not in (None, held.size):
        raise ValueError(f"--draft-vocab: got {size}, the heads have a draft vocabulary of {held.size} already")
    if size is None or held is not None or size >= vocab_size:
        return
    if size < 1:
        raise ValueError(f"--draft-vocab: got {size}, expected at least 1")
    counts = add_counts([np.zeros(vocab_size, np.int64), train_set.token_counts()])
    best = np.argsort(-counts, kind="stable")[:size]
    heads.draft_among(mx.array(np.sort(best).astype(np.int32)))


def stored_teacher_size(options: TrainOptions, heads: MTPHeads) -> int | None:
    """How many stored teacher logits the loss uses: its top-N where the cache holds as many. Otherwise the teacher is computed
    from the stored hidden states."""
    if options.model.cache is None or (heads.draft_tokens is not None and options.loss.loss != "ce"):
        return None
    loss, held = options.loss, open_cache(Path(options.model.cache).expanduser()).layout.top_n
    if loss.loss == "ce":
        return 1
    return loss.top_n if loss.loss in ("mtpd", "kl") and loss.top_n <= held else None


def resolve_tokenizer(folder: str) -> Path:
    path = Path(folder).expanduser()
    if not (path / "tokenizer.json").is_file():
        raise ValueError(f"--tokenizer {folder}: no tokenizer.json in it")
    return path


@dataclass
class Outcome:
    progress: Progress
    curve: list[dict[str, Any]]
    improved: bool


def train(options: TrainOptions, ingredients: Ingredients, show: Callable[[dict[str, Any]], None]) -> Outcome:
    """Runs (or resumes) one training run; the checkpoint in `out` is the best one by validation."""
    out, joint = Path(options.run.out), options.model.train == "joint"
    tokenizer = Tokenizer.from_folder(ingredients.tokenizer_folder)
    if tokenizer.vocab_size > ingredients.base.vocab_size:
        raise ValueError(
            f"tokenizer has {tokenizer.vocab_size} tokens, the base's vocabulary only {ingredients.base.vocab_size}"
        )
    train_set, valid_set = load_data(options, tokenizer)
    choose_draft_tokens(ingredients.heads, options.heads.draft_vocab, train_set, ingredients.base.vocab_size)
    world = World.launched()
    again = f"continue with the same command and --resume (--out {out})"
    stop_clearly(world, again)

    def claim() -> None:
        if not options.run.resume:
            claim_folder(out, options.run.overwrite)
            write_json(out / OPTIONS_NAME, options.to_dict())

    world.from_lead(claim)
    model = Model(ingredients.base, ingredients.heads, joint, ingredients.first_trained, options.optim.grad_checkpoint)
    stepper = Stepper(model, options.loss, options.optim, world, stored_teacher_size(options, ingredients.heads))
    record = _record(options, train_set, valid_set)
    reference = None if joint else reference_base(ingredients.base, out, ingredients.base_name)

    def save_best(progress: Progress) -> None:
        target = reference
        if target is None:
            save_base(out / "base", ingredients.base, ingredients.tokenizer_folder)
            target = reference_base(replace(ingredients.base, path=out / "base"), out, str(out / "base"))
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
    extending = ingredients.first_trained > 0
    run = Run(model, stepper, train_set, rows, options.optim, options.run, save_best, save_start=extending)
    try:
        if options.run.resume:
            run.resume()
        progress = run.run(tell)
    except RuntimeError as error:
        if world.size == 1:
            raise
        raise ValueError(f"rank {world.rank}: {str(error).splitlines()[0]} ({LOST}); {again}") from error
    return Outcome(progress, run.curve, progress.best_iteration != 0)


def _limit(val_batches: int) -> int | None:
    return max(val_batches, 1) if val_batches >= 0 else None


def _record(options: TrainOptions, train_set: Any, valid_set: Any) -> dict[str, Any]:
    """What a checkpoint says about its making."""
    values = options.to_dict()
    loss = {k: values[k] for k in ("loss", "alpha", "beta", "top_n", "eta")}
    data = {f"{name}_tokens": part.num_tokens for name, part in (("train", train_set), ("valid", valid_set))}
    data |= {f"{name}_sha256": part.sha256 for name, part in (("train", train_set), ("valid", valid_set))}
    places = ("out", "data", "model", "tokenizer", "cache", "model_config", "init_heads", "project_name", "report_to")
    training = {k: v for k, v in values.items() if k not in loss and k not in places}
    return {"loss": loss, "data": data, "training": training, "versions": versions()}
