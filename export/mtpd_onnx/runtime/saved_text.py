"""`SavedText`: a text's caches, copied to the host and put back. For folders that run on CPUs.
Called by runtime/choosing.py and logit_model.py, for a server's prefix cache."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class SavedText:
    """rows: keys and values of the base's layers by input name, [1, kv heads, length, head_dim]. hidden [length, d]: h^0, from
    which heads go on: they read the last positions anew. None where heads are not used."""

    tokens: list[int]
    rows: dict[str, np.ndarray]
    hidden: np.ndarray | None = None

    @property
    def kind(self) -> str:
        return kind_of(self.hidden is not None)

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.rows.values()) + (0 if self.hidden is None else self.hidden.nbytes)


def kind_of(with_hidden: bool) -> str:
    return "onnx, decoder" if with_hidden else "onnx, main graph"


def read_rows(caches: Mapping[str, Any], length: int) -> dict[str, np.ndarray]:
    """A copy of the first `length` positions of arrays, or of OrtValues on the CPU, by name."""
    arrays = {name: value if isinstance(value, np.ndarray) else value.numpy() for name, value in caches.items()}
    return {name: np.array(array[:, :, :length]) for name, array in arrays.items()}


def write_rows(caches: Mapping[str, Any], rows: Mapping[str, np.ndarray], length: int) -> None:
    """The inverse."""
    for name, value in caches.items():
        if isinstance(value, np.ndarray):
            value[:, :, :length] = rows[name][:, :, :length]
            continue
        whole = np.array(value.numpy())
        whole[:, :, :length] = rows[name][:, :, :length]
        value.update_inplace(whole)
