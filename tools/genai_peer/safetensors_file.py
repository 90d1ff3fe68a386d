"""`writable`: a safetensors file of known shapes, laid out and written in place through views.
Called by tools/random_model.py."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mtpd_mlx.files.safetensors import lay_out

NAMES = {np.dtype("<f4"): "F32", np.dtype("<f2"): "F16"}


def writable(file: Path, shapes: Mapping[str, tuple[int, ...]], dtype: np.dtype) -> dict[str, np.ndarray]:
    """Writes the header of `file` and returns writable views of its tensors, still zero."""
    sizes = {name: int(np.prod(shape)) * dtype.itemsize for name, shape in shapes.items()}
    head, begins, end = lay_out([(name, NAMES[dtype], shape, sizes[name]) for name, shape in shapes.items()], "pt")
    with file.open("wb") as f:
        f.write(head)
        f.truncate(end)
    whole = np.memmap(file, dtype=np.uint8, mode="r+")
    return {n: whole[begins[n] : begins[n] + sizes[n]].view(dtype).reshape(shape) for n, shape in shapes.items()}
