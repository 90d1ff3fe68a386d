"""`affine`, `floats`, `packed`, `as_raw`: blocks of quantised weights as MLX's integers, as values, as file contents.
Called by gguf/tensors.py, rope.py and reader.py.

A block is 32 weights of a row: w = d (q - 8) in Q4_0, w = d q + m in Q4_1, w = d q with q of -128..127 in Q8_0. MLX's affine
groups of 32 are w = scale q + bias with q from 0. So they hold the same integers: bias is -8 d, m or -128 d, exact in float16.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mtpd_mlx.files.safetensors import Raw

if TYPE_CHECKING:
    from mtpd_mlx.checkpoints.gguf.reader import Tensor

GROUP = 32
PLAIN = {"F32": (0, 4), "F16": (1, 2), "BF16": (30, 2)}  # kind -> (number in the file, bytes of a value)
EXACT = {"Q4_0": (2, 18, 4), "Q4_1": (3, 20, 4), "Q8_0": (8, 34, 8)}  # kind -> (number, bytes of a block, bits)
KINDS = {number: kind for kind, (number, *_) in (PLAIN | EXACT).items()}


def package() -> Any:
    """The gguf package, for all types but those above. ImportError in one line where it is missing."""
    try:
        import gguf
    except ImportError as error:
        raise ImportError(f'this file has types that need the gguf package ({error}): pip install -e ".[gguf]"') from error
    return gguf


def kind_of(number: int) -> str:
    """GGML's name of a type. ValueError for an unknown number."""
    if number in KINDS:
        return KINDS[number]
    try:
        name: str = package().GGMLQuantizationType(number).name
    except ValueError:
        raise ValueError(f"got type {number}, which is unknown") from None
    return name


def block_of(kind: str) -> tuple[int, int]:
    """(weights, bytes) of a block."""
    if kind in PLAIN:
        return 1, PLAIN[kind][1]
    if kind in EXACT:
        return GROUP, EXACT[kind][1]
    found = package()
    length, size = found.GGML_QUANT_SIZES[found.GGMLQuantizationType[kind]]
    return int(length), int(size)


@dataclass(frozen=True)
class Affine:
    """q uint8 [rows, columns] of 0..2^bits - 1; scales, biases float16 [rows, columns / 32]."""

    q: np.ndarray
    scales: np.ndarray
    biases: np.ndarray
    bits: int

    def ordered(self, order: np.ndarray) -> "Affine":
        """With its rows in another order."""
        return Affine(self.q[order], self.scales[order], self.biases[order], self.bits)


def affine(tensor: "Tensor") -> Affine:
    """The integers of a matrix of one of the types EXACT. ValueError where a scale is not finite, or its bias is not."""
    _, size, bits = EXACT[tensor.kind]
    rows = tensor.shape[0]
    blocks = tensor.data.reshape(rows, -1, size)
    scales = _halves(blocks[..., 0:2])
    if tensor.kind == "Q8_0":
        q = blocks[..., 2:] ^ 0x80  # two's complement + 128
    else:
        q = blocks[..., size - 16 :]
        q = np.concatenate([q & 15, q >> 4], axis=-1)
    with np.errstate(over="ignore", invalid="ignore"):
        biases = _halves(blocks[..., 2:4]) if tensor.kind == "Q4_1" else scales * np.float16(-(1 << (bits - 1)))
    if not (np.isfinite(scales).all() and np.isfinite(biases).all()):
        raise ValueError(f"{tensor.name!r}: a scale is not finite, or too large for float16")
    return Affine(q.reshape(rows, -1), scales, biases, bits)


def _halves(blocks: np.ndarray) -> np.ndarray:
    halves: np.ndarray = np.ascontiguousarray(blocks).view("<f2")[..., 0]
    return halves


def floats(tensor: "Tensor") -> np.ndarray:
    """float32 values in the tensor's shape. ValueError where one is not finite, or the type cannot be dequantised."""
    if tensor.kind in PLAIN:
        values = Raw(tensor.kind, tensor.data.view(f"<u{PLAIN[tensor.kind][1]}").reshape(tensor.shape)).floats()
    elif tensor.kind in EXACT and len(tensor.shape) == 2:
        found = affine(tensor)
        groups = found.q.reshape(*found.scales.shape, GROUP).astype(np.float32)
        groups = groups * found.scales[..., None].astype(np.float32) + found.biases[..., None].astype(np.float32)
        values = groups.reshape(tensor.shape)
    else:
        values = _by_package(tensor)
    if not np.isfinite(values).all():
        raise ValueError(f"{tensor.name!r}: a value is not finite")
    return values


def _by_package(tensor: "Tensor") -> np.ndarray:
    found = package()
    from gguf.quants import dequantize

    length, size = block_of(tensor.kind)
    rows = tensor.data.reshape(*tensor.shape[:-1], tensor.shape[-1] // length * size)
    try:
        with np.errstate(all="ignore"):
            values = dequantize(rows, found.GGMLQuantizationType[tensor.kind])
    except (NotImplementedError, ValueError, TypeError) as error:
        raise ValueError(f"{tensor.name!r}: type {tensor.kind} cannot be dequantised") from error
    return np.asarray(values, np.float32).reshape(tensor.shape)


def packed(q: np.ndarray, bits: int) -> np.ndarray:
    """uint8 [rows, columns] -> MLX's uint32 words [rows, columns * bits / 32], lowest bits first."""
    if bits == 4:
        q = q[:, 0::2] | q[:, 1::2] << 4
    return np.ascontiguousarray(q).view("<u4")


def as_raw(values: np.ndarray, dtype: str) -> np.ndarray:
    """float32 values as the bits of F32, F16 or BF16, to nearest even. ValueError where one is too large for F16."""
    values = np.ascontiguousarray(values, np.float32)
    if dtype == "F32":
        return values.view("<u4")
    if dtype == "BF16":
        bits = values.view("<u4")
        rounded: np.ndarray = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
        return rounded.astype("<u2")
    with np.errstate(over="ignore"):
        halves = values.astype("<f2")
    if not np.isfinite(halves).all():
        raise ValueError(f"{np.abs(values).max():g} is too large for float16")
    return halves.view("<u2")
