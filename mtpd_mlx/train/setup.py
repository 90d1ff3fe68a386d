"""`gather`: the parts of a training run as its options name them (base, heads, data, draft vocabulary, teacher).
Called by train/run.py and the training commands."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from mtpd_mlx.checkpoints.format import read_config
from mtpd_mlx.data import load_dataset
from mtpd_mlx.data.counts import check, say
from mtpd_mlx.data.packing import add_counts
from mtpd_mlx.files.json_object import read_json_object
from mtpd_mlx.hub.pull import resolve_folder, resolve_model
from mtpd_mlx.model.adapters import add_lora
from mtpd_mlx.model.base import Base, load_base, say_if_slow
from mtpd_mlx.model.compute import cast
from mtpd_mlx.model.heads import MTPHeads, init_heads
from mtpd_mlx.model.load_save import load_heads
from mtpd_mlx.model.new_base import new_base
from mtpd_mlx.model.runtime import bound_queue, mx
from mtpd_mlx.options.schema import flag
from mtpd_mlx.options.train import ModelConfig, TrainOptions
from mtpd_mlx.ranks.world import World
from mtpd_mlx.teacher_cache.format import CacheIndex
from mtpd_mlx.teacher_cache.reader import CachedDataset, open_cache
from mtpd_mlx.text.tokenizer import Tokenizer
from mtpd_mlx.train.step import compute_dtype


@dataclass
class Ingredients:
    """Base, heads and what goes into the checkpoint beside them. Heads before `first_trained` stay as they are."""

    base: Base
    heads: MTPHeads
    tokenizer_folder: Path
    base_name: str
    first_trained: int = 0
    keep_start: bool = False  # the heads as they came in are a result too, where no step is better
    record: dict[str, Any] = field(default_factory=dict)  # what the checkpoint says besides


def gather(options: TrainOptions) -> Ingredients:
    """Loads or creates base and heads as the options say."""
    bound_queue()
    cfg = options.model
    compute = compute_dtype(options.optim)
    if cfg.cache is not None:
        base, folder, name = base_of_cache(cfg, compute)
    elif cfg.model is not None:
        # A frozen base is held in the compute dtype (of a quantised one the scales: other types would promote every
        # product to float32); what trains keeps float32 master weights.
        base = load_base(cfg.model, dequantize=cfg.dequantize or cfg.train == "joint", adapter=adapter_of(cfg))
        say_if_slow(base)
        cast(base.model, mx.float32 if cfg.train == "joint" else compute)
        if cfg.train == "lora":
            add_lora(base.model, options.lora, options.run.seed)
        folder = resolve_tokenizer(cfg.tokenizer) if cfg.tokenizer else resolve_model(cfg.model)
        name = cfg.model
    elif cfg.model_config is not None and cfg.train == "joint":
        if cfg.tokenizer is None:
            raise ValueError("--model-config needs --tokenizer, the folder with the tokenizer to use")
        config = read_json_object(Path(cfg.model_config), f"--model-config {cfg.model_config}")
        base, folder, name = new_base(config, options.run.seed), resolve_tokenizer(cfg.tokenizer), ""
    else:
        raise ValueError("no base: give --model, or --model-config with --train joint to train one from scratch")
    if options.heads.init_heads:
        heads, held = load_heads(Path(options.heads.init_heads), base)
        # A run that goes on has its weights in its resume point; where they came from may be --out, which holds its own by now.
        checked = not (options.heads.allow_base_mismatch or options.run.resume)
        if checked and (base.path is None or not held.base.fits(base.fingerprint)):
            raise ValueError(
                f"--init-heads {options.heads.init_heads}: belong to another base ({held.base.named}); adapt them with "
                "mtpd refit, or pass --allow-base-mismatch"
            )
        if heads.num_heads != options.heads.num_heads or heads.hidden_source != options.heads.hidden_source:
            raise ValueError(
                f"--init-heads {options.heads.init_heads}: has {heads.num_heads} heads ({heads.hidden_source}), "
                f"expected {options.heads.num_heads} ({options.heads.hidden_source})"
            )
    else:
        heads = init_heads(base, options.heads.num_heads, options.heads.hidden_source, options.run.seed)
    return Ingredients(base, heads, folder, name)


def heads_as_given(options: TrainOptions) -> TrainOptions:
    """The options with the number of heads and the hidden source of --init-heads, where a user said nothing of them."""
    held, given = options.heads, options.given
    if held.init_heads is None:
        return options
    config = read_config(resolve_folder(Path(held.init_heads)))
    found = {name: getattr(config, name) for name in ("num_heads", "hidden_source") if name not in given}
    return replace(options, heads=replace(held, **found))


def base_of_cache(cfg: ModelConfig, compute: mx.Dtype) -> tuple[Base, Path, str]:
    """Embedding, final norm and output head of the base that a cache was made with; its folder and name."""
    folder = Path(str(cfg.cache)).expanduser()
    held = open_cache(folder).base
    name = cfg.model or held.locate(folder)
    base = load_base(name, dequantize=cfg.dequantize, ends_only=True, adapter=adapter_of(cfg) or held.locate_adapter(folder))
    assert base.path is not None
    check_cache(folder, base.fingerprint, name)
    cast(base.model, compute)
    return base, base.path, name


def adapter_of(cfg: ModelConfig) -> Path | None:
    return None if cfg.adapter_path is None else Path(cfg.adapter_path).expanduser()


def check_cache(folder: Path, fingerprint: str, name: str) -> None:
    """Refuses a cache that was made with another base than that of `name`."""
    made_with = open_cache(folder).base.fingerprint
    if fingerprint != made_with:
        raise ValueError(
            f"--cache {folder}: made with another base ({made_with[:19]}..., {name}: "
            f"{fingerprint[:19]}...); run mtpd cache with this one"
        )


def rows_as_cached(options: TrainOptions) -> TrainOptions:
    """The options with what --cache says about its rows. ValueError where a user asked for other ones."""
    if options.model.cache is None:
        return options
    made_with = cache_index(options).data
    stored = {name: made_with[name] for name in ("max_seq_length", "mask_prompt", "pack", "valid_share") if name in made_with}
    for name, value in stored.items():
        if name in options.given and getattr(options.data, name) != value:
            got = getattr(options.data, name)
            raise ValueError(f"{flag(name)}: got {got}, expected {value}, as {options.model.cache} was made with")
    return replace(options, data=replace(options.data, **stored))


def cache_index(options: TrainOptions) -> CacheIndex:
    return open_cache(Path(str(options.model.cache)).expanduser())


def load_data(options: TrainOptions, tokenizer: Tokenizer) -> tuple[Any, Any]:
    """Training and validation rows, of text or of a cache; says what they hold. ValueError where there is nothing to learn."""
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
        raise ValueError(
            f"{named}: no validation text, which chooses the heads that are kept: give a valid.jsonl that is not empty, or "
            "none (then --valid-share of the rows is held out)"
        )
    held = {"train": train_set.counts(), "valid": valid_set.counts()}
    known = {name: counts for name, counts in held.items() if counts is not None}  # caches of earlier versions do not say
    if World.launched().leads:
        say(known)
    check(known, named, options.data.max_seq_length, options.data.mask_prompt)
    return train_set, valid_set


def choose_draft_tokens(heads: MTPHeads, size: int | None, train_set: Any, vocab_size: int) -> None:
    """Gives heads that have none the `size` most frequent tokens of the training rows (lower ids first among equals)."""
    held = heads.draft_tokens
    if size is not None and not 1 <= size <= vocab_size:
        raise ValueError(f"--draft-vocab: got {size}, expected 1..{vocab_size} (the base's vocabulary)")
    if held is not None and size not in (None, held.size):
        raise ValueError(f"--draft-vocab: got {size}, the heads have a draft vocabulary of {held.size} already")
    if size is None or held is not None or size == vocab_size:
        return
    counts = add_counts([np.zeros(vocab_size, np.int64), train_set.token_counts()])
    best = np.argsort(-counts, kind="stable")[:size]
    heads.draft_among(mx.array(np.sort(best).astype(np.int32)))


def stored_teacher_size(options: TrainOptions, heads: MTPHeads) -> int | None:
    """How many stored teacher logits a position the loss uses, where the cache holds as many as it wants. None: the teacher is
    computed from the stored hidden states."""
    if options.model.cache is None or (heads.draft_tokens is not None and options.loss.loss != "ce"):
        return None
    layout = cache_index(options).layout
    wanted = teacher_size(options, layout.vocab_size)
    return wanted if wanted <= layout.top_n else None


def teacher_size(options: TrainOptions, vocab_size: int) -> int:
    """Of how many tokens the loss wants the main head's logits (ce: of its argmax)."""
    whole = {"ce": 1, "lk": vocab_size, "tv": vocab_size}
    return whole.get(options.loss.loss, min(options.loss.top_n, vocab_size))


def teacher_line(options: TrainOptions) -> str | None:
    """Where the teacher of a run from a cache comes from, for the user; None where nothing is to choose."""
    if options.model.cache is None or options.loss.loss == "ce":
        return None
    layout = cache_index(options).layout
    wanted, held = teacher_size(options, layout.vocab_size), layout.top_n
    computed = "teacher: computed from the hidden states of the cache"
    if held == 0:
        return computed
    if options.heads.draft_vocab is not None:
        return f"{computed} (--draft-vocab cuts it to other tokens than the {held} it holds)"
    if wanted <= held:
        return f"teacher: {wanted} stored logits a position"
    hint = "" if options.loss.loss in ("lk", "tv") else f"; --top-n {held} would use those"
    return f"{computed}: {wanted} logits a position are wanted, {held} are stored{hint}"


def resolve_tokenizer(folder: str) -> Path:
    """The tokenizer's folder. ValueError if it holds no tokenizer.json."""
    path = Path(folder).expanduser()
    if not (path / "tokenizer.json").is_file():
        raise ValueError(f"--tokenizer {folder}: no tokenizer.json in it")
    return path
