"""Safetensors with numpy alone: memory-mapped reading of a Hugging Face folder, and a file laid out before it is written."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from mtpd_mlx.files.safetensors import read_header

DTYPES = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}
NAMES = {DTYPES[name]: name for name in ("F32", "F16")}


class Folder:
    """The tensors of `folder`/model*.safetensors by name."""

    def __init__(self, folder: Path):
        self._where = {}
        files = sorted(folder.glob("model*.safetensors"))
        if not files:
            raise ValueError(f"{folder}: no model*.safetensors in it")
        for file in files:
            table, start = read_header(file)
            self._where |= {name: (file, start, entry) for name, entry in table.items()}

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def shape(self, name: str) -> tuple[int, ...]:
        """ValueError naming the key when it is missing or of a type that cannot be read."""
        if name not in self._where:
            raise ValueError(f"weights: missing key {name!r}")
        file, _, entry = self._where[name]
        if entry["dtype"] not in DTYPES:
            raise ValueError(f"{file}: {name} has dtype {entry['dtype']}, expected one of {', '.join(DTYPES)}")
        return tuple(entry["shape"])

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Rows start..stop-1; bfloat16 widened to float32, which is exact."""
        file, offset, entry = self._where[name]
        dtype, shape = DTYPES[entry["dtype"]], tuple(entry["shape"])
        whole = np.memmap(file, dtype=dtype, mode="r", offset=offset + entry["data_offsets"][0], shape=shape)
        part = whole[start:stop]
        return (part.astype("<u4") << 16).view("<f4") if entry["dtype"] == "BF16" else part


def lay_out(file: Path, shapes: Mapping[str, tuple[int, ...]], dtype: np.dtype) -> dict[str, np.ndarray]:
    """Writes the header of `file` and returns writable views of its tensors, still zero."""
    table: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + int(np.prod(shape)) * dtype.itemsize
        table[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
    head = json.dumps(table, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    with file.open("wb") as f:
        f.write(len(head).to_bytes(8, "little") + head)
        f.truncate(8 + len(head) + end)
    whole = np.memmap(file, dtype=np.uint8, mode="r+", offset=0)[8 + len(head) :]
    views, begin = {}, 0
    for name, shape in shapes.items():
        size = int(np.prod(shape)) * dtype.itemsize
        views[name] = whole[begin : begin + size].view(dtype).reshape(shape)
        begin += size
    return views
