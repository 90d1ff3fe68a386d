"""`Layout`: the distillation cache on disk, index and shards (docs/internals/formats.md). numpy and json only.
Called by teacher_cache/reader.py, writer.py, teacher.py and train/setup.py."""

import hashlib
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mtpd_mlx.checkpoints.format import BaseRef, check_base
from mtpd_mlx.data.counts import Counts
from mtpd_mlx.files.atomic import write_json
from mtpd_mlx.files.json_object import read_json_object
from mtpd_mlx.files.safetensors import lay_out

INDEX_NAME = "cache.json"
FORMAT, FORMAT_VERSION = "mtpd-cache", 1
HIDDEN = "prenorm"
OF_LOGITS = ("main_loss", "logsumexp", "top_logits", "top_tokens")
SPLITS = ("train", "valid")
MAX_SHARDS = 100_000  # five digits in a shard's name
SAFETENSORS_NAMES = {
    "bool": "BOOL",
    "uint16": "U16",
    "int32": "I32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float32": "F32",
}
HIDDEN_DTYPES = ("bfloat16", "float16", "float32")
LOGITS_DTYPES = ("float16", "float32")


def numpy_dtype(name: str) -> np.dtype:
    """bfloat16, which numpy lacks, is kept as its bits in uint16."""
    return np.dtype("uint16" if name == "bfloat16" else name)


@dataclass(frozen=True)
class Tensor:
    """One tensor of a shard: dtype name and the shape of one row (without the leading [R])."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape) * numpy_dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Layout:
    """What decides shapes and dtypes of every shard of a cache."""

    hidden_size: int
    vocab_size: int
    max_seq_length: int
    top_n: int
    dtype: str
    logits_dtype: str

    def tensors(self) -> dict[str, Tensor]:
        """The tensors of a shard in file order: wide dtypes first, so that every one is aligned to its own width."""
        t, n = self.max_seq_length, self.top_n
        table = {
            "tokens": Tensor("int32", (t,)),
            "segments": Tensor("int32", (t,)),
            "main_loss": Tensor("float32", (t,)),
            "logsumexp": Tensor("float32", (t,)),
            "hidden": Tensor(self.dtype, (t, self.hidden_size)),
            "top_logits": Tensor(self.logits_dtype, (t, n)),
            "top_tokens": Tensor("uint16" if self.vocab_size <= 1 << 16 else "int32", (t, n)),
            "loss_mask": Tensor("bool", (t,)),
        }
        if n == 0:  # what is computed from logits stays out: hidden states serve alone
            table = {name: tensor for name, tensor in table.items() if name not in OF_LOGITS}
        return dict(sorted(table.items(), key=lambda item: -numpy_dtype(item[1].dtype).itemsize))


def row_bytes(layout: Layout) -> int:
    """Bytes of one row of T tokens in a shard."""
    return sum(tensor.row_bytes for tensor in layout.tensors().values())


def bytes_per_token(layout: Layout) -> int:
    """Disk per token (header of the shard aside): every tensor has one entry per token."""
    return row_bytes(layout) // layout.max_seq_length


def shard_name(split: str, number: int) -> str:
    return f"{split}-{number:05d}.safetensors"


def shard_rows(num_rows: int, rows_per_shard: int) -> list[int]:
    """Rows of each shard of a split: full ones, then the rest."""
    full, rest = divmod(num_rows, rows_per_shard)
    return [rows_per_shard] * full + [rest] * (rest > 0)


def shard_header(layout: Layout, rows: int) -> tuple[bytes, dict[str, int], int]:
    """(first bytes of the safetensors file, offset of each tensor in the file, size of the whole file)."""
    rows_of = ((name, SAFETENSORS_NAMES[t.dtype], [rows, *t.shape], rows * t.row_bytes) for name, t in layout.tensors().items())
    return lay_out(rows_of, "mlx")


def file_sha256(file: Path) -> str:
    with file.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


@dataclass(frozen=True)
class Shard:
    """One shard of a split as the index records it: file name, rows, size in bytes, sha256."""

    file: str
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class SplitIndex:
    """`rows` [R] of the whole split; `shards` that are finished, in order. Complete when their rows add up. `targets`,
    `drafted`, `cut` and `empty`: as Counts has them; earlier versions left them out."""

    rows: int
    tokens: int
    sha256: str
    shards: tuple[Shard, ...] = ()
    targets: int | None = None
    drafted: int | None = None
    cut: int | None = None
    empty: int | None = None

    def counts(self) -> Counts | None:
        """None where the index does not say."""
        if self.targets is None or self.drafted is None or self.cut is None or self.empty is None:
            return None
        return Counts(self.rows, self.tokens, self.targets, self.drafted, self.cut, self.empty)

    @property
    def complete(self) -> bool:
        return sum(s.rows for s in self.shards) == self.rows


@dataclass(frozen=True)
class CacheIndex:
    """cache.json. `data`: what defines the rows; `options`: those of the command, which --resume takes up. `compute_dtype`:
    what the base ran in; earlier versions left it out."""

    base: BaseRef
    layout: Layout
    rows_per_shard: int
    data: dict[str, Any]
    splits: dict[str, SplitIndex]
    options: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    compute_dtype: str | None = None

    @property
    def complete(self) -> bool:
        return all(split.complete for split in self.splits.values())

    def to_json(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "base": vars(self.base),
            "hidden": HIDDEN,
            "dtype": self.layout.dtype,
            "logits_dtype": self.layout.logits_dtype,
            "top_n": self.layout.top_n,
            "max_seq_length": self.layout.max_seq_length,
            "rows_per_shard": self.rows_per_shard,
            "data": self.data,
            "splits": {n: vars(s) | {"shards": [vars(shard) for shard in s.shards]} for n, s in self.splits.items()},
            "options": self.options,
            "versions": self.versions,
            "compute_dtype": self.compute_dtype,
        }


def read_index(folder: Path) -> CacheIndex:
    """Reads and validates `folder`/cache.json, complete or not. ValueError in one line names what was got and expected."""
    file = folder / INDEX_NAME
    if not file.is_file():
        raise ValueError(f"{folder}: not a distillation cache (no {INDEX_NAME})")
    values = read_json_object(file)
    if values.get("format") != FORMAT:
        raise ValueError(f"{file}: not a distillation cache (expected format {FORMAT!r})")
    if (version := values.get("format_version")) != FORMAT_VERSION:
        raise ValueError(f"{file}: format_version: got {version!r}, expected {FORMAT_VERSION}")
    try:
        index = _parse(values)
        check_base(index.base, str(file))
        _check_types(file, index)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file}: missing, unknown or ill-typed key ({str(error)[:80]!r})") from error
    _check_values(file, values, index)
    return index


def _parse(values: dict[str, Any]) -> CacheIndex:
    base = BaseRef(**values["base"])
    layout = Layout(
        base.hidden_size,
        base.vocab_size,
        values["max_seq_length"],
        values["top_n"],
        values["dtype"],
        values["logits_dtype"],
    )
    splits = {
        name: SplitIndex(**(split | {"shards": tuple(Shard(**shard) for shard in split["shards"])}))
        for name, split in values["splits"].items()
    }
    rows_per_shard, data = values["rows_per_shard"], values["data"]
    return CacheIndex(
        base, layout, rows_per_shard, data, splits, values["options"], values["versions"], values.get("compute_dtype")
    )


def _check_types(file: Path, index: CacheIndex) -> None:
    """Of what is neither counted nor one of a few words."""
    kinds = {"mask_prompt": bool, "pack": bool, "max_seq_length": int, "valid_share": (int, float)}
    entries: dict[str, tuple[Any, Any]] = {name: (getattr(index, name), dict) for name in ("data", "options", "versions")}
    if isinstance(index.data, dict):
        entries |= {f"data.{n}": (index.data[n], kind) for n, kind in kinds.items() if n in index.data}
    entries["compute_dtype"] = (index.compute_dtype, str | None)
    for name, split in index.splits.items():
        entries |= {f"splits.{name}.sha256": (split.sha256, str), f"splits.{name}.tokens": (split.tokens, int)}
        entries |= {f"splits.{name}.{n}": (getattr(split, n), int | None) for n in ("targets", "drafted", "cut", "empty")}
        for shard in split.shards:
            entries |= {f"splits.{name}: file": (shard.file, str), f"splits.{name}: sha256": (shard.sha256, str)}
            if not isinstance(shard.file, str):
                break
    for name, (got, kind) in entries.items():
        if not isinstance(got, kind):
            raise ValueError(f"{file}: {name}: got {str(got)[:60]!r}, expected {getattr(kind, '__name__', 'a number')}")


def _check_values(file: Path, values: dict[str, Any], index: CacheIndex) -> None:
    choices = {
        "hidden": (values.get("hidden"), (HIDDEN,)),
        "dtype": (index.layout.dtype, HIDDEN_DTYPES),
        "logits_dtype": (index.layout.logits_dtype, LOGITS_DTYPES),
    }
    for name, (got, known) in choices.items():
        if got not in known:
            raise ValueError(f"{file}: {name}: got {got!r}, expected one of {', '.join(known)}")
    counts = {
        "base.hidden_size": index.base.hidden_size,
        "base.vocab_size": index.base.vocab_size,
        "max_seq_length": index.layout.max_seq_length,
        "rows_per_shard": index.rows_per_shard,
    }
    for split, entry in index.splits.items():
        counts[f"splits.{split}.rows"] = entry.rows
        for shard in entry.shards:
            counts |= {f"{shard.file}: rows": shard.rows, f"{shard.file}: bytes": shard.bytes}
    for name, count in counts.items():
        if type(count) is not int or count < 1:
            raise ValueError(f"{file}: {name}: got {count!r}, expected a positive integer")
    if type(index.layout.top_n) is not int or not 0 <= index.layout.top_n <= index.layout.vocab_size:
        raise ValueError(f"{file}: top_n: got {index.layout.top_n!r}, expected 0..{index.layout.vocab_size}")
    if "train" not in index.splits or not set(index.splits) <= set(SPLITS):
        raise ValueError(f"{file}: splits: got {', '.join(index.splits) or 'none'}, expected train, or train and valid")
    for split, entry in index.splits.items():
        _check_shards(file, split, entry, index)


def _check_shards(file: Path, split: str, entry: SplitIndex, index: CacheIndex) -> None:
    """Finished shards are some of the planned ones, in order and of the size that their rows take."""
    rows_per_shard = index.rows_per_shard
    if entry.rows > MAX_SHARDS * rows_per_shard:
        raise ValueError(
            f"{file}: splits.{split}.rows: got {entry.rows}, expected at most {MAX_SHARDS} shards of {rows_per_shard}"
        )
    planned = {shard_name(split, i): rows for i, rows in enumerate(shard_rows(entry.rows, rows_per_shard))}
    names = [shard.file for shard in entry.shards]
    if names != sorted(set(names)):
        raise ValueError(f"{file}: splits.{split}: got shards out of order or twice, expected ascending names")
    for shard in entry.shards:
        if planned.get(shard.file) != shard.rows:
            expected = f"{planned[shard.file]} rows" if shard.file in planned else f"no shard after {max(planned)}"
            raise ValueError(f"{file}: {shard.file}: got {shard.rows} rows, expected {expected}")
        if (size := shard_header(index.layout, shard.rows)[2]) != shard.bytes:
            raise ValueError(f"{file}: {shard.file}: got {shard.bytes} bytes, expected {size} for {shard.rows} rows")


def write_index(folder: Path, index: CacheIndex) -> None:
    """Replaces cache.json."""
    write_json(folder / INDEX_NAME, index.to_json())
