"""`Tensors`: tensors of a model folder or checkpoint as numpy arrays, one at a time; quantised ones unpacked or raw.
Called by the rest of weights/ and by export/export.py."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from mtpd_mlx.checkpoints.quantised import unpack_bits
from mtpd_mlx.families.multimodal import text_name
from mtpd_mlx.families.shapes import BLOCKS, SCALES
from mtpd_mlx.files.safetensors import RawTensors

DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16, "F64": np.float64, "U32": np.uint32}
DTYPES |= {"U8": np.uint8}
MXFP4_GROUP = 32
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)


@dataclass(frozen=True)
class Stored:
    """How MLX stored a matrix."""

    bits: int
    group_size: int


class Tensors:
    """Named tensors of one or several safetensors files, read on demand (memory-mapped)."""

    def __init__(self, stored: RawTensors, quantization: dict[str, Any] | None):
        self._stored, self._quantization = stored, quantization

    @classmethod
    def of_base(cls, folder: Path, quantization: dict[str, Any] | None) -> "Tensors":
        """Under the names that the language model has alone, where it lies in a multimodal checkpoint."""
        return cls(RawTensors.of_model(folder, text_name), quantization)

    def __contains__(self, name: str) -> bool:
        return name in self._stored

    def get(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """float32 array; ValueError naming the key when it is missing or of another shape."""
        if name not in self._stored:
            raise ValueError(f"weights: missing key {name!r} (expected shape {shape})")
        stem = name.removesuffix(".weight")
        if self.quantised(stem) is not None:
            array = self._unpack(stem)
        elif f"{stem}.scales" in self._stored:
            array = mxfp4(self._raw(name).view(np.uint8), self._raw(f"{stem}.scales"))
        else:
            array = self._raw(name)
        if array.shape != shape:
            raise ValueError(f"weights: {name}: got shape {array.shape}, expected {shape}")
        array = np.ascontiguousarray(array, dtype=np.float32)
        check_finite(name, array)
        return array

    def blocks(self, stem: str, shape: tuple[int, ...]) -> np.ndarray:
        """float32: a matrix in MXFP4 as OpenAI stores it, [.., G, 16] bytes."""
        packed = self._raw(f"{stem}{BLOCKS}")
        array = mxfp4(packed.reshape(*packed.shape[:-2], -1), self._raw(f"{stem}{SCALES}"))
        if array.shape != shape:
            raise ValueError(f"weights: {stem}: got shape {array.shape}, expected {shape}")
        return array

    def _raw(self, name: str) -> np.ndarray:
        raw = self._stored.mapped(name, DTYPES)
        return raw.bits.view(DTYPES[raw.dtype])

    def shape(self, name: str) -> list[int] | None:
        """As it is stored; None where it is not there."""
        return list(self._stored.shape(name)) if name in self._stored else None

    @property
    def default_bits(self) -> int | None:
        """Bits of the matrices that have no settings of their own; None in a model that is not quantised."""
        return (self._quantization or {}).get("bits")

    def quantised(self, stem: str) -> Stored | None:
        """How the matrix `stem`.weight is stored in integers; None where it is in floating point, MXFP4 included."""
        if f"{stem}.scales" not in self._stored:
            return None
        own = (self._quantization or {}).get(stem)
        settings = {**(self._quantization or {}), **(own if isinstance(own, dict) else {})}
        if self._stored.table[f"{stem}.scales"]["dtype"] == "U8":
            return None  # MXFP4: unpacked (get), as it is in no form that onnxruntime multiplies with
        if "bits" not in settings or "group_size" not in settings:
            raise ValueError(f"weights: {stem} is quantised but the config gives no bits and group_size")
        return Stored(settings["bits"], settings["group_size"])

    def integers(self, stem: str) -> np.ndarray:
        """MLX's integers, uint8 [N, K], one to a byte; ValueError where they do not divide into the config's groups."""
        stored = self.quantised(stem)
        assert stored is not None
        q = unpack_bits(np.ascontiguousarray(self._raw(f"{stem}.weight")), stored.bits)
        groups = self._stored.shape(f"{stem}.scales")[-1]
        if q.shape[-1] != groups * stored.group_size:
            got = f"{q.shape[-1]} integers and {groups} scales a row"
            raise ValueError(f"weights: {stem}: got {got}, expected groups of {stored.group_size} (config.json, quantization)")
        return q

    def scales_and_biases(self, stem: str) -> tuple[np.ndarray, np.ndarray]:
        """float32 [N, G] each."""
        scales, biases = (self._raw(f"{stem}.{part}").astype(np.float32) for part in ("scales", "biases"))
        return scales, biases

    def width(self, stem: str) -> int:
        """Inputs K of the matrix `stem`.weight."""
        stored = self.quantised(stem)
        if f"{stem}.scales" not in self._stored:
            return self._stored.shape(f"{stem}.weight")[-1]
        return self._stored.shape(f"{stem}.scales")[-1] * (MXFP4_GROUP if stored is None else stored.group_size)

    def _unpack(self, stem: str) -> np.ndarray:
        """MLX affine quantisation: w = scale * q + bias, q packed little-endian into uint32, groups along the last axis."""
        scales, biases = self.scales_and_biases(stem)
        q = self.integers(stem)
        grouped = q.reshape(*scales.shape, -1).astype(np.float32)
        return (grouped * scales[..., None] + biases[..., None]).reshape(q.shape)


def mxfp4(packed: np.ndarray, exponents: np.ndarray) -> np.ndarray:
    """float32 [.., 32 G] of bytes [.., 16 G], two numbers each (the lower half first), and exponents uint8 [.., G] of groups:
    E2M1 times 2^(e - 127) (OCP Microscaling Formats 1.0)."""
    numbers = E2M1[np.stack([packed & 15, packed >> 4], axis=-1)]
    grouped = numbers.reshape(*exponents.shape, MXFP4_GROUP)
    return np.ldexp(grouped, exponents[..., None].astype(np.int32) - 127).reshape(*packed.shape[:-1], -1)


def check_finite(name: str, array: np.ndarray) -> None:
    """ValueError where a floating-point array holds NaN or infinity."""
    lowest, highest = (float(f(array)) if array.size else 0.0 for f in (np.min, np.max))  # NaN where any number is
    if not (math.isfinite(lowest) and math.isfinite(highest)):
        bad = int(np.count_nonzero(~np.isfinite(array)))
        raise ValueError(f"weights: {name}: {bad} of {array.size} numbers are NaN or infinite, expected finite ones")
