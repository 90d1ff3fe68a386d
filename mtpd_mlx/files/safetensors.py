"""`RawTensors`, `write_raw`, `copy_tensors`, `lay_out`: safetensors files, bit for bit.
Called by every reader and writer that does not leave it to MLX.

No type is converted; bfloat16, which numpy lacks, stays bits.
Damage is a ValueError of one line.
"""

import json
import math
import operator
import struct
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mtpd_mlx.files.atomic import replacing
from mtpd_mlx.files.json_object import LFS, LFS_HINT
from mtpd_mlx.files.model_files import WEIGHTS, Table, agree, chosen

MAX_HEADER_BYTES = 100 << 20
ITEM_BYTES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}
ITEM_BYTES |= {"I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1}
OF_HEADS = ("F64", "I64", "F32", "U32", "I32", "F16", "BF16", "U8")  # what heads and bases that ship some may hold


def read_header(file: Path) -> tuple[Table, int]:
    """(tensor table, offset of the data) of a safetensors file; checks that the file holds every byte it declares, that every
    tensor has the bytes of its shape and that they follow one another. ValueError in one line."""
    size = file.stat().st_size
    with file.open("rb") as f:
        if f.read(len(LFS)) == LFS:
            raise ValueError(f"{file}: {LFS_HINT}")
        f.seek(0)
        head = f.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else 1 << 62
        if length > min(size - 8, MAX_HEADER_BYTES):
            raise ValueError(f"{file}: not a whole safetensors file (header cut short)")
        try:
            table = json.loads(f.read(length))
            table.pop("__metadata__", None)
            places = [(*(operator.index(n) for n in entry["data_offsets"]), name) for name, entry in table.items()]
            end = _check_places(sorted(places), table, file)
        except Damaged as error:
            raise ValueError(str(error)) from None
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
            raise ValueError(f"{file}: not a safetensors file (unreadable header)") from error
    if 8 + length + end != size:
        raise ValueError(f"{file}: truncated or damaged: {size} bytes, expected {8 + length + end}")
    return table, 8 + length


class Damaged(Exception):
    """A tensor table that contradicts itself."""


def _check_places(places: list[Any], table: Table, file: Path) -> int:
    """Where the data ends."""
    at = 0
    for begin, stop, name in places:
        dtype, shape = table[name]["dtype"], table[name]["shape"]
        if not isinstance(dtype, str):
            raise Damaged(f"{file}: {name!r}: dtype: got {dtype!r}, expected text")
        if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape):
            raise Damaged(f"{file}: {name!r}: shape: got {str(shape)[:60]}, expected a list of sizes")
        width = ITEM_BYTES.get(dtype)
        if width is not None and stop - begin != width * math.prod(shape):
            raise Damaged(
                f"{file}: {name!r}: {stop - begin} bytes, expected {width * math.prod(shape)} ({dtype}, shape {shape})"
            )
        if begin != at or stop < begin:
            raise Damaged(f"{file}: {name!r}: data at {begin}..{stop}, expected where the last tensor ends, at {at}")
        at = stop
    return at


@dataclass(frozen=True)
class Raw:
    """`dtype`: the file's name of it; `bits`: the tensor, in its shape, as unsigned integers of that width."""

    dtype: str
    bits: np.ndarray

    def floats(self) -> np.ndarray:
        """float32 values; ValueError where the type is no float32, float16 or bfloat16."""
        if self.dtype == "F32":
            return self.bits.view(np.float32)
        if self.dtype == "F16":
            return self.bits.view(np.float16).astype(np.float32)
        if self.dtype == "BF16":
            return (self.bits.astype(np.uint32) << 16).view(np.float32)
        raise ValueError(f"got dtype {self.dtype}, expected F32, F16 or BF16")

    @classmethod
    def of_floats(cls, values: np.ndarray) -> "Raw":
        return cls("F32", np.ascontiguousarray(values, np.float32).view("<u4"))


class RawTensors:
    """Tensors of one or more files by name. Headers are read (and checked) at once, contents when they are asked for."""

    def __init__(self, files: Iterable[Path], renamed: Callable[[str], str | None] = lambda name: name):
        """`renamed`: the name to find a tensor under; None leaves it out. ValueError where two have one name."""
        self.remarks: tuple[str, ...] = ()  # of a model's folder: what a user should know of it
        self.tables: dict[Path, Table] = {}  # as the headers have them
        self._where: dict[str, tuple[Path, int, dict[str, Any]]] = {}
        self._mapped: tuple[Path, np.ndarray] | None = None  # the file that was read last: a map holds a file descriptor
        for file in files:
            table, start = read_header(file)
            self.tables[file] = table
            for name, entry in table.items():
                if (new := renamed(name)) is None:
                    continue
                if new in self._where:
                    other = self._where[new][0]
                    raise ValueError(f"{file}: {name!r} is in {other.name} too: expected it once")
                self._where[new] = (file, start, entry)

    @classmethod
    def of_model(
        cls, folder: Path, renamed: Callable[[str], str | None] = lambda name: name, beside: bool = False
    ) -> "RawTensors":
        """Those of a model's folder (files/model_files.py); `beside`: with heads beside its weights. ValueError where it has no
        weights, or they contradict one another or their index."""
        files = chosen(folder)
        if not (names := files.all if beside else files.weights):
            raise ValueError(f"{folder}: no {WEIGHTS} in it")
        made = cls([folder / name for name in names], renamed)
        made.remarks = agree(files, {file.name: table for file, table in made.tables.items()}, str(folder))
        return made

    @property
    def table(self) -> Table:
        return {name: entry for name, (_, _, entry) in self._where.items()}

    def __contains__(self, name: str) -> bool:
        return name in self._where

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def shape(self, name: str) -> tuple[int, ...]:
        """ValueError where it is missing."""
        return tuple(self._place(name)[2]["shape"])

    def data(self, name: str) -> np.ndarray:
        """The tensor's bytes, uint8 [n], memory-mapped: nothing is read before it is used. Of any type, known or not."""
        file, start, entry = self._place(name)
        if (mapped := self._mapped) is None or mapped[0] != file:
            self._mapped = mapped = file, np.asarray(np.memmap(file, np.uint8, "r"))
        begin, end = entry["data_offsets"]
        return mapped[1][start + begin : start + end]

    def mapped(self, name: str, expected: Collection[str] = ITEM_BYTES) -> Raw:
        """The tensor, memory-mapped. ValueError where it is missing or of none of the `expected` types."""
        file, _, entry = self._place(name)
        if (dtype := entry["dtype"]) not in expected:
            raise ValueError(f"{file}: {name!r}: got dtype {dtype}, expected {' or '.join(expected)}")
        return Raw(dtype, self.data(name).view(f"<u{ITEM_BYTES[dtype]}").reshape(entry["shape"]))

    def __getitem__(self, name: str) -> Raw:
        """The tensor, read into memory. ValueError where it is missing or of a type that heads do not have."""
        raw = self.mapped(name, OF_HEADS)
        return Raw(raw.dtype, raw.bits.copy())

    def _place(self, name: str) -> tuple[Path, int, dict[str, Any]]:
        if name not in self._where:
            raise ValueError(f"weights: missing key {name!r}")
        return self._where[name]


def lay_out(tensors: Iterable[tuple[str, str, Sequence[int], int]], writer: str) -> tuple[bytes, dict[str, int], int]:
    """(first bytes of a file, where each tensor begins in it, its size) for tensors (name, dtype, shape, bytes) in file order.
    `writer`: the format that its metadata names."""
    table: dict[str, Any] = {"__metadata__": {"format": writer}}
    begins, end = {}, 0
    for name, dtype, shape, size in tensors:
        begins[name], end = end, end + size
        table[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begins[name], end]}
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    start = 8 + len(text)
    return struct.pack("<Q", len(text)) + text, {name: start + begin for name, begin in begins.items()}, start + end


def write_raw(file: Path, tensors: Mapping[str, Raw]) -> None:
    """Replaces `file` with the tensors, in this order."""
    _write(file, [(name, raw.dtype, raw.bits.shape, raw.bits) for name, raw in tensors.items()])


def write_made(
    file: Path, tensors: Sequence[tuple[str, str, Sequence[int], int, Callable[[], np.ndarray]]], writer: str = "pt"
) -> None:
    """Replaces `file` with tensors (name, dtype, shape, bytes, function that makes it), in this order. Memory holds one of them
    at a time. `writer`: the format that its metadata names."""
    head, _, _ = lay_out([tensor[:4] for tensor in tensors], writer)
    with replacing(file) as temporary, temporary.open("wb") as f:
        f.write(head)
        for name, _, _, size, make in tensors:
            values = np.ascontiguousarray(make())
            assert values.nbytes == size, name
            f.write(values.data)


def copy_tensors(source: Path, target: Path, names: Iterable[str]) -> None:
    """Replaces `target` with only the tensors `names` of `source`, whatever their types; memory holds none of them."""
    held = RawTensors([source])
    table = held.table
    _write(target, [(name, table[name]["dtype"], table[name]["shape"], held.data(name)) for name in names])


def _write(file: Path, tensors: Sequence[tuple[str, str, Sequence[int], np.ndarray]]) -> None:
    write_made(
        file, [(name, dtype, shape, values.nbytes, partial(np.asarray, values)) for name, dtype, shape, values in tensors]
    )
