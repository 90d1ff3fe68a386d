"""`AdaptedTensors`: a base's tensors with an mlx-lm LoRA adapter folded in. Adapted matrices are no longer integers.
Called by export/export.py."""

from pathlib import Path

import numpy as np

from mtpd_mlx.checkpoints.adapter_format import WEIGHTS, read_adapter
from mtpd_mlx.files.safetensors import RawTensors
from mtpd_onnx.weights.tensors import Stored, Tensors


class AdaptedTensors(Tensors):
    """`tensors` with W + scale (A B)^T for linear layers, W + scale A B for embeddings. ValueError for DoRA and experts."""

    def __init__(self, tensors: Tensors, folder: Path):
        self._inner, adapter = tensors, read_adapter(folder)
        if adapter.kind == "dora" or any(len(entry["shape"]) == 3 for entry in adapter.table.values()):
            raise ValueError(f"--adapter-path {folder}: DoRA and experts are not supported in export; fuse it with mlx_lm.fuse")
        self._folder, self._full = folder, adapter.kind == "full"
        self._scale = 0.0 if self._full else adapter.scale
        self._adapter, self._table = Tensors(RawTensors([folder / WEIGHTS]), None), adapter.table
        stems = {name.rpartition(".")[0] for name in adapter.table}
        for stem in sorted(stems):
            if f"{stem}.weight" not in tensors:
                raise ValueError(f"--adapter-path {folder}: does not fit this model: no {stem}.weight in it")
        self._stems = stems

    def __contains__(self, name: str) -> bool:
        return name in self._inner

    def shape(self, name: str) -> list[int] | None:
        return self._inner.shape(name)

    @property
    def default_bits(self) -> int | None:
        return self._inner.default_bits

    def get(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        if self._full and name in self._adapter:
            return self._adapter.get(name, shape)
        array, stem = self._inner.get(name, shape), name.removesuffix(".weight")
        if self._full or stem not in self._stems or not name.endswith(".weight"):
            return array
        a, b = (self._adapter.get(n, tuple(self._table[n]["shape"])) for n in (f"{stem}.lora_a", f"{stem}.lora_b"))
        delta = a @ b if stem.endswith("embed_tokens") else (a @ b).T
        if delta.shape != shape:
            raise ValueError(f"--adapter-path {self._folder}: {stem}: got {delta.shape}, expected {shape}")
        return array + np.float32(self._scale) * delta

    def quantised(self, stem: str) -> Stored | None:
        return None if stem in self._stems else self._inner.quantised(stem)

    def integers(self, stem: str) -> np.ndarray:
        return self._inner.integers(stem)

    def scales_and_biases(self, stem: str) -> tuple[np.ndarray, np.ndarray]:
        return self._inner.scales_and_biases(stem)

    def width(self, stem: str) -> int:
        return self._inner.width(stem)
