"""Raw tensors of safetensors files, bit for bit: no type is converted, bfloat16 stays in uint16."""

import json
import math
import operator
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mtpd_mlx.files.atomic import replacing

MAX_HEADER_BYTES = 100 << 20
ITEM_BYTES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}
ITEM_BYTES |= {"I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1}
PIECE = 16 << 20
WIDTHS = {"F64": "<u8", "I64": "<i8", "F32": "<u4", "U32": "<u4", "I32": "<i4", "F16": "<u2", "BF16": "<u2", "U8": "u1"}


def read_header(file: Path) -> tuple[dict, int]:
    """(tensor table, offset of the data) of a safetensors file; checks that the file holds every byte it declares, that every
    tensor has the bytes of its shape and that they follow one another. ValueError in one line."""
    size = file.stat().st_size
    with file.open("rb") as f:
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


def _check_places(places: list[Any], table: dict, file: Path) -> int:
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
    """`dtype`: the file's name of it; `bits`: the tensor as unsigned integers of that width."""

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
    """Tensors of one or more files by name, read when asked for."""

    def __init__(self, files: list[Path]):
        self._where: dict[str, tuple[Path, int, dict]] = {}
        for file in files:
            table, start = read_header(file)
            self._where |= {name: (file, start, entry) for name, entry in table.items()}

    @property
    def table(self) -> dict[str, dict]:
        return {name: entry for name, (_, _, entry) in self._where.items()}

    def __getitem__(self, name: str) -> Raw:
        """ValueError where it is missing or of a type that heads do not have."""
        if name not in self._where:
            raise ValueError(f"weights: missing key {name!r}")
        file, start, entry = self._where[name]
        if entry["dtype"] not in WIDTHS:
            raise ValueError(f"{file}: {name}: got dtype {entry['dtype']}, expected one of {', '.join(WIDTHS)}")
        offset, shape = start + entry["data_offsets"][0], tuple(entry["shape"])
        values: np.ndarray = np.fromfile(file, WIDTHS[entry["dtype"]], offset=offset, count=math.prod(shape))
        return Raw(entry["dtype"], values.reshape(shape))


def write_raw(file: Path, tensors: Mapping[str, Raw]) -> None:
    """Replaces `file` with the tensors, in this order."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, raw in tensors.items():
        end = offset + raw.bits.nbytes
        header[name] = {"dtype": raw.dtype, "shape": list(raw.bits.shape), "data_offsets": [offset, end]}
        offset = end
    _write(file, header, (np.ascontiguousarray(raw.bits).tobytes() for raw in tensors.values()))


def copy_tensors(source: Path, target: Path, names: Iterable[str]) -> None:
    """Writes a file with only the tensors `names` of `source`, whatever their types, some megabytes at a time."""
    table, start = read_header(source)
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    places, offset = [], 0
    for name in names:
        begin, stop = table[name]["data_offsets"]
        places.append((start + begin, stop - begin))
        header[name] = table[name] | {"data_offsets": [offset, offset + stop - begin]}
        offset += stop - begin

    def pieces() -> Iterator[bytes]:
        with source.open("rb") as f:
            for at, size in places:
                f.seek(at)
                for done in range(0, size, PIECE):
                    yield f.read(min(PIECE, size - done))

    _write(target, header, pieces())


def _write(file: Path, header: dict[str, object], data: Iterable[bytes]) -> None:
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with replacing(file) as temporary, temporary.open("wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for piece in data:
            f.write(piece)
