"""`CheckpointConfig`, `read_config`: a heads checkpoint on disk (docs/internals/formats.md). No mlx here.
Called by everything that opens heads, on either runtime."""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mtpd_mlx.files.hub_ids import is_hub_id, split_revision
from mtpd_mlx.files.json_object import read_json_object
from mtpd_mlx.files.publish import recover
from mtpd_mlx.files.safetensors import RawTensors

CONFIG_NAME = "mtp_config.json"
TUNED = "tuned"  # key of the record: what `mtpd tune` found
DRAFT_TOKENS = "draft_tokens"  # int32 [D] in the weights file, where draft_vocab is set
WEIGHTS_NAME = "heads.safetensors"
FORMAT, FORMAT_VERSION = "mtpd-heads", 1
MAX_CONFIG_BYTES, MAX_HEADS = 4 << 20, 64
HIDDEN_SOURCES = ("postnorm", "prenorm")


@dataclass(frozen=True)
class BaseRef:
    """The base that heads belong to. `id` starting with ./ or ../ is relative to the checkpoint folder; owner/name@revision is
    taken apart into id and revision."""

    id: str
    fingerprint: str
    model_type: str
    hidden_size: int
    vocab_size: int
    revision: str | None = None
    adapter: str | None = None  # folder of an mlx-lm adapter that belongs to the base, as `id` relative to the checkpoint
    same_weights: tuple[str, ...] = ()  # fingerprints of other forms of these weights (the integers of a GGUF file, kept)

    def __post_init__(self) -> None:
        if isinstance(self.same_weights, list):  # as JSON has it
            object.__setattr__(self, "same_weights", tuple(self.same_weights))
        if isinstance(self.id, str) and is_hub_id(self.id):
            plain, revision = split_revision(self.id, self.revision)
            object.__setattr__(self, "id", plain)
            object.__setattr__(self, "revision", revision)

    @property
    def named(self) -> str:
        """`id`, with the revision where there is one."""
        return f"{self.id}@{self.revision}" if self.revision and is_hub_id(self.id) else self.id

    def fits(self, fingerprint: str) -> bool:
        """Whether a base with this fingerprint is the one that heads belong to, in whichever form."""
        return fingerprint in (self.fingerprint, *self.same_weights)

    def locate(self, checkpoint: Path) -> str:
        """The folder or hub id to load, as a user would name it."""
        return _located(checkpoint, self.named)

    def locate_adapter(self, checkpoint: Path) -> Path | None:
        """The folder of the base's adapter, where it has one. ValueError in one line where it is not there."""
        if self.adapter is None:
            return None
        folder = Path(_located(checkpoint, self.adapter))
        if not folder.is_dir():
            raise ValueError(
                f"{checkpoint}: its base has the adapter {folder}, which is missing; put it back, "
                "or refit the heads to a base without it"
            )
        return folder

    def to_json(self) -> dict[str, Any]:
        optional = ("adapter", "same_weights")
        return {k: list(v) if isinstance(v, tuple) else v for k, v in vars(self).items() if k not in optional or v}


def named_from(named: str, checkpoint: Path) -> str:
    """How `checkpoint` names a model: a hub id as it is, a folder relative to the checkpoint, beginning with ./ or ../."""
    local = Path(named).expanduser()
    if not local.is_dir():
        return named
    path = os.path.relpath(local.resolve(), checkpoint.resolve())
    return path if path.startswith("..") else f"./{path}"


def _located(checkpoint: Path, name: str) -> str:
    return str((checkpoint / name).resolve()) if name.startswith(("./", "../")) else name


@dataclass(frozen=True)
class CheckpointConfig:
    """mtp_config.json. `record` holds what was measured and how the heads were made (loss, training, data, eval, versions)."""

    num_heads: int
    hidden_source: str
    base: BaseRef
    quantization: dict[str, int] | None = None
    record: dict[str, Any] = field(default_factory=dict)
    draft_vocab: int | None = None  # size D of the vocabulary the heads draft in (tensor draft_tokens); None: the base's own
    post_norms: bool = False  # each head has a final norm of its own (imported ones) instead of the base's

    def to_json(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "num_heads": self.num_heads,
            "hidden_source": self.hidden_source,
            "draft_vocab": self.draft_vocab,
            "base": self.base.to_json(),
            "quantization": self.quantization,
            **({"post_norms": True} if self.post_norms else {}),
            **self.record,
        }


def read_config(checkpoint: Path) -> CheckpointConfig:
    """Reads and validates `checkpoint`/mtp_config.json, once what a killed run was putting in place is there. ValueError in one
    line names what was got and expected."""
    recover(checkpoint)
    file = checkpoint / CONFIG_NAME
    if not checkpoint.is_dir() or not file.is_file():
        other = "; it is a model, which mtpd generate --plain decodes" if (checkpoint / "config.json").is_file() else ""
        if (checkpoint / "manifest.json").is_file():
            other = "; it is an exported folder, which mtpd-onnx decodes"
        raise ValueError(f"{checkpoint}: not a heads checkpoint (no {CONFIG_NAME}){other}")
    return parse_config(read_json_object(file, limit=MAX_CONFIG_BYTES), str(file))


def parse_config(values: dict[str, Any], file: str) -> CheckpointConfig:
    """The same of a parsed file; `file` is its name in messages."""
    if values.pop("format", None) != FORMAT:
        raise ValueError(f"{file}: not a heads checkpoint (expected format {FORMAT!r})")
    if (version := values.pop("format_version", None)) != FORMAT_VERSION:
        raise ValueError(f"{file}: format_version: got {version!r}, expected {FORMAT_VERSION}")
    try:
        num_heads, source = values.pop("num_heads"), values.pop("hidden_source")
        base = parse_base(values.pop("base"), file)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{file}: missing or unknown key {error}") from error
    check_num_heads(num_heads, f"{file}: num_heads")
    if source not in HIDDEN_SOURCES:
        raise ValueError(f"{file}: hidden_source: got {source!r}, expected one of {', '.join(HIDDEN_SOURCES)}")
    draft_vocab = values.pop("draft_vocab", None)
    if draft_vocab is not None and not (type(draft_vocab) is int and 0 < draft_vocab <= base.vocab_size):  # True is no size
        raise ValueError(f"{file}: draft_vocab: got {draft_vocab!r}, expected 1..{base.vocab_size} or null")
    quantization, post_norms = values.pop("quantization", None), values.pop("post_norms", False)
    if quantization is not None and not _is_quantization(quantization):
        raise ValueError(f"{file}: quantization: got {quantization!r}, expected bits and group_size, or null")
    if type(post_norms) is not bool:
        raise ValueError(f"{file}: post_norms: got {post_norms!r}, expected true or false")
    return CheckpointConfig(num_heads, source, base, quantization, values, draft_vocab, post_norms)


def check_num_heads(count: Any, name: str) -> None:
    """What a checkpoint can hold is all that is ever made; `name`: of the option or key, for the message."""
    if type(count) is not int or not 1 <= count <= MAX_HEADS:
        raise ValueError(f"{name}: got {count!r}, expected 1..{MAX_HEADS}")


def _is_quantization(value: Any) -> bool:
    return isinstance(value, dict) and all(type(value.get(name)) is int and value[name] > 0 for name in ("bits", "group_size"))


def parse_base(values: Any, file: str) -> BaseRef:
    """ValueError in one line where a key is missing, unknown or of another type; `file` is where it was read."""
    try:
        base = BaseRef(**values)
    except TypeError as error:
        raise ValueError(f"{file}: base: missing or unknown key {error}") from error
    check_base(base, file)
    return base


def check_base(base: BaseRef, file: str) -> None:
    """ValueError in one line where a field of it is not of its type; `file` is where it was read."""
    texts = {name: getattr(base, name) for name in ("id", "fingerprint", "model_type")}
    for name, value in texts.items():
        if not isinstance(value, str) or not value:
            raise ValueError(f"{file}: base.{name}: got {value!r}, expected text")
    for name in ("hidden_size", "vocab_size"):
        if type(getattr(base, name)) is not int or getattr(base, name) < 1:
            raise ValueError(f"{file}: base.{name}: got {getattr(base, name)!r}, expected a positive integer")
    if not isinstance(base.same_weights, tuple) or not all(isinstance(x, str) and x for x in base.same_weights):
        raise ValueError(f"{file}: base.same_weights: got {base.same_weights!r}, expected a list of fingerprints")
    for name in ("revision", "adapter"):
        if not isinstance(getattr(base, name), str | None):
            raise ValueError(f"{file}: base.{name}: got {getattr(base, name)!r}, expected text or null")


def read_draft_tokens(checkpoint: Path, config: CheckpointConfig) -> np.ndarray | None:
    """The draft vocabulary int32 [D] of a checkpoint, or None. ValueError in one line unless weights and config agree and the
    ids are strictly ascending and inside the base's vocabulary."""
    file, size = checkpoint / WEIGHTS_NAME, config.draft_vocab
    tensors = RawTensors([file])
    if (DRAFT_TOKENS in tensors) != (size is not None):
        word = "missing" if size is not None else "unexpected"
        raise ValueError(f"{file}: {word} key {DRAFT_TOKENS!r} ({CONFIG_NAME} has draft_vocab {json.dumps(size)})")
    if size is None:
        return None
    ids = tensors.mapped(DRAFT_TOKENS, ["I32"]).bits.view("<i4").copy()
    check_draft_tokens(ids, size, config.base.vocab_size, str(file))
    return ids


def check_draft_tokens(ids: np.ndarray, size: int, vocab_size: int, source: str) -> None:
    """ids int32 [size]: strictly ascending, 0..vocab_size-1. ValueError names the first id that is not."""
    if ids.shape != (size,):
        raise ValueError(f"{source}: {DRAFT_TOKENS}: got shape {ids.shape}, expected ({size},)")
    before = np.concatenate([[-1], ids[:-1]])
    wrong = np.flatnonzero((ids <= before) | (ids >= vocab_size))
    if wrong.size:
        got = f"got {ids[wrong[0]]} at index {wrong[0]}"
        raise ValueError(f"{source}: {DRAFT_TOKENS}: {got}, expected strictly ascending token ids 0..{vocab_size - 1}")
