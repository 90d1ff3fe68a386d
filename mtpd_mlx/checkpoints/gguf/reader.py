"""`read_gguf(file)`: metadata and tensor table of a GGUF file, checked against its size. Contents stay on disk.
Called by all of gguf/.

The file is untrusted: every length is checked before it is followed, and damage is a ValueError of one line that names the key
or the tensor. (The gguf package's own reader follows a damaged count until memory is full, so only its tables and its
dequantisation are used.)
"""

import math
import struct
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from mtpd_mlx.checkpoints.gguf.quants import block_of, kind_of

MAGIC, VERSIONS, ALIGNMENT, MAX_DIMENSIONS = b"GGUF", (2, 3), 32, 4
NUMBERS = {0: "u1", 1: "i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?", 10: "<u8", 11: "<i8", 12: "<f8"}
TEXT, ARRAY = 8, 9
T = TypeVar("T")


@dataclass(frozen=True)
class Tensor:
    """kind: GGML's name of the type; shape: as Hugging Face has it, rows first; data: its bytes, uint8, memory-mapped."""

    name: str
    kind: str
    shape: tuple[int, ...]
    data: np.ndarray


class Gguf:
    """A whole file. `get` and `need` look metadata up: `kind` is what the value must be."""

    def __init__(self, file: Path, metadata: dict[str, Any], tensors: dict[str, Tensor]):
        self.file, self.metadata, self.tensors = file, metadata, tensors

    def get(self, key: str, kind: type[T], default: T | None = None) -> T | None:
        """None (or `default`) where the key is missing. Whole numbers are taken for floats. A list of one number again and
        again (some writers give a value per layer) is that number. ValueError names the key."""
        value = self.metadata.get(key)
        if value is None:
            return default
        if kind in (int, float) and isinstance(value, np.ndarray) and value.size and (value == value[0]).all():
            value = value[0].item()
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind or (isinstance(value, float) and not math.isfinite(value)):  # True is no number
            shown = f"{len(value)} values" if isinstance(value, list | np.ndarray) else repr(value)[:60]
            raise ValueError(f"{self.file}: {key}: got {shown}, expected {EXPECTED.get(kind, kind.__name__)}")
        return value

    def need(self, key: str, kind: type[T]) -> T:
        """ValueError where it is missing."""
        if (value := self.get(key, kind)) is None:
            raise ValueError(f"{self.file}: missing key {key!r}")
        return value

    def numbers(self, key: str) -> np.ndarray | None:
        """A list of numbers or flags, None where the key is missing."""
        value = self.metadata.get(key)
        if value is not None and not isinstance(value, np.ndarray):
            raise ValueError(f"{self.file}: {key}: got {repr(value)[:60]}, expected a list of numbers")
        return value

    def counts(self) -> Counter[str]:
        """How many tensors there are of each type."""
        return Counter(tensor.kind for tensor in self.tensors.values())


EXPECTED: dict[type, str] = {
    int: "a whole number",
    float: "a finite number",
    str: "text",
    bool: "true or false",
    list: "a list of texts",
}


class _Cursor:
    """Reads along the file's first part. ValueError where the file ends before what it announces."""

    def __init__(self, file: Path, data: np.ndarray):
        self.file, self.data, self.at, self.where = file, data.data, 0, "header"

    def take(self, size: int) -> memoryview:
        if size > len(self.data) - self.at:
            raise ValueError(f"{self.file}: truncated or damaged: {self.where}: the file ends before it does")
        self.at += size
        return self.data[self.at - size : self.at]

    def number(self, form: str) -> int:
        value: int = struct.unpack(form, self.take(struct.calcsize(form)))[0]
        return value

    def text(self) -> str:
        raw = bytes(self.take(self.number("<Q")))
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"{self.file}: {self.where}: not UTF-8 text (byte {error.start})") from error

    def value(self, kind: int) -> Any:
        if kind == TEXT:
            return self.text()
        if kind == ARRAY:
            return self._array(self.number("<I"), self.number("<Q"))
        return self._numbers(kind, 1)[0].item()

    def _array(self, kind: int, count: int) -> Any:
        if kind != TEXT:
            return self._numbers(kind, count)
        if count > (len(self.data) - self.at) // 8:  # each has a length of 8 bytes
            self.take(count * 8)
        return [self.text() for _ in range(count)]

    def _numbers(self, kind: int, count: int) -> np.ndarray:
        if kind not in NUMBERS:
            raise ValueError(f"{self.file}: {self.where}: got value type {kind}, expected a number, a text or a list of these")
        dtype = np.dtype(NUMBERS[kind])
        raw = np.frombuffer(self.take(count * dtype.itemsize), "u1")
        return raw != 0 if dtype == np.bool_ else raw.view(dtype)


def read_gguf(file: Path) -> Gguf:
    """ValueError in one line where it is no whole GGUF file of this machine's byte order."""
    if not file.is_file():
        raise ValueError(f"{file}: no such file")
    if file.stat().st_size < 24:
        raise ValueError(f"{file}: not a GGUF file ({file.stat().st_size} bytes)")
    data = np.asarray(np.memmap(file, np.uint8, "r"))
    cursor = _Cursor(file, data)
    _check_version(cursor)
    tensors, pairs = cursor.number("<Q"), cursor.number("<Q")
    metadata: dict[str, Any] = {}
    for i in range(pairs):
        cursor.where = f"key {i + 1} of {pairs}"
        cursor.where = key = cursor.text()
        metadata[key] = cursor.value(cursor.number("<I"))
    if (parts := metadata.get("split.count", 1)) not in (0, 1):
        raise ValueError(f"{file}: split.count: one of {parts} parts; join them first (llama-gguf-split --merge)")
    alignment = metadata.get("general.alignment", ALIGNMENT)
    if type(alignment) is not int or alignment < 1:
        raise ValueError(f"{file}: general.alignment: got {repr(alignment)[:60]}, expected a positive number")
    table = [_entry(cursor, i, tensors) for i in range(tensors)]
    start = -(-cursor.at // alignment) * alignment
    return Gguf(file, metadata, _located(file, data, start, table))


def _check_version(cursor: _Cursor) -> None:
    if bytes(cursor.take(4)) != MAGIC:
        raise ValueError(f"{cursor.file}: not a GGUF file")
    version = cursor.number("<I")
    if version & 0xFFFF == 0 and version:
        raise ValueError(f"{cursor.file}: a big-endian GGUF file, expected a little-endian one")
    if version not in VERSIONS:
        raise ValueError(f"{cursor.file}: GGUF version {version}, expected {' or '.join(map(str, VERSIONS))}")


def _entry(cursor: _Cursor, i: int, count: int) -> tuple[str, str, tuple[int, ...], int, int]:
    """(name, type, shape, offset in the data, bytes) of the next tensor."""
    cursor.where = f"tensor {i + 1} of {count}"
    name = cursor.text()
    cursor.where, dimensions = f"tensor {name!r}", cursor.number("<I")
    if not 1 <= dimensions <= MAX_DIMENSIONS:
        raise ValueError(f"{cursor.file}: {name!r}: got {dimensions} dimensions, expected 1..{MAX_DIMENSIONS}")
    shape = tuple(reversed([cursor.number("<Q") for _ in range(dimensions)]))
    try:
        kind = kind_of(cursor.number("<I"))
        length, size = block_of(kind)
    except ValueError as error:
        raise ValueError(f"{cursor.file}: {name!r}: {error}") from None
    if 0 in shape or shape[-1] % length:
        raise ValueError(f"{cursor.file}: {name!r}: got shape {shape}, expected rows of whole {kind} blocks of {length}")
    return name, kind, shape, cursor.number("<Q"), math.prod(shape) // length * size


def _located(file: Path, data: np.ndarray, start: int, table: list[Any]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, kind, shape, offset, size in table:
        if name in tensors:
            raise ValueError(f"{file}: {name!r}: is there twice")
        end = start + offset + size
        if end > data.size:
            raise ValueError(f"{file}: truncated or damaged: {name!r} ends at byte {end}, the file at {data.size}")
        tensors[name] = Tensor(name, kind, shape, data[end - size : end])
    return tensors
