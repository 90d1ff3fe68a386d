"""`round_to_nearest`, `from_mlx`: matrices of small integers, one scale and zero point per group, rounded here or MLX's.
Called by weights/parameters.py and quantised_layouts.py."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

CHUNK = 4096  # rows worked on at a time
ROUNDING = 2.0**-22  # relative: what float32 arithmetic may have lost in MLX's scale and bias


@dataclass
class Matrix:
    """w[n, k] = scales[n, g] * (integers[n, k] - zeros[n, g]) + residual[n, g], g = k // group_size.

    integers uint8 [N, K], one per byte; zeros uint8 [N, G]; scales and residual float32 [N, G].
    """

    bits: int
    group_size: int
    integers: np.ndarray
    scales: np.ndarray
    zeros: np.ndarray
    residual: np.ndarray

    def rows(self, ids: Sequence[int]) -> "Matrix":
        parts = (part[list(ids)] for part in (self.integers, self.scales, self.zeros, self.residual))
        return Matrix(self.bits, self.group_size, *parts)

    def packed(self) -> np.ndarray:
        """uint8 [N, G, group_size * bits / 8]: the layout of com.microsoft.MatMulNBits, and of MLX's uint32 seen as bytes."""
        return pack(self.integers, self.bits).reshape(*self.scales.shape, -1)

    def offset(self, scales: np.ndarray) -> np.ndarray:
        """float32 [N, G]: w = scales * (integers - 2^(bits - 1)) + offset, for operators that take no zero point."""
        return (scales * ((1 << self.bits - 1) - self.zeros.astype(np.float64)) + self.residual).astype(np.float32)


def affine(scales: np.ndarray, biases: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """(zeros, residual) that make scale * (q - zero) + residual the same as MLX's scale * q + bias.

    MLX's bias is -zero * scale with an integer zero, up to the rounding of the scale. In float32 nothing is left over. In
    bfloat16 the scale is off by up to 2^-9 of itself; and where all weights of a group have one sign the zero lies outside
    0..2^bits - 1. Both go to the residual.
    """
    s, b = scales.astype(np.float64), biases.astype(np.float64)
    exact = np.divide(-b, s, out=np.zeros_like(b), where=s != 0)
    zeros = np.clip(np.rint(exact), 0, (1 << bits) - 1)
    residual = b + s * zeros
    residual[np.abs(residual) <= ROUNDING * np.abs(b)] = 0
    return zeros.astype(np.uint8), residual.astype(np.float32)


def from_mlx(integers: np.ndarray, scales: np.ndarray, biases: np.ndarray, bits: int, group_size: int) -> Matrix:
    """MLX's integers uint8 [N, K] as they are, to be stored in `bits` each. group_size divides MLX's: scales are repeated."""
    repeats = integers.shape[1] // scales.shape[1] // group_size
    scales, biases = (np.repeat(part, repeats, axis=1).astype(np.float32) for part in (scales, biases))
    return Matrix(bits, group_size, integers, scales, *affine(scales, biases, bits))


def round_to_nearest(weight: np.ndarray, bits: int, group_size: int, scale_dtype: np.dtype) -> Matrix:
    """Rounds `weight` [N, K]: the range of a group, 0 included, in 2^bits - 1 equal steps. Half a step is the largest error,
    but for the rounding of the scale to `scale_dtype`."""
    outputs, inputs = weight.shape
    groups, top = inputs // group_size, (1 << bits) - 1
    integers = np.empty((outputs, inputs), np.uint8)
    scales, zeros = np.empty((outputs, groups), np.float32), np.empty((outputs, groups), np.uint8)
    for start in range(0, outputs, CHUNK):
        part = slice(start, start + CHUNK)
        grouped = weight[part].reshape(-1, groups, group_size)
        low, high = np.minimum(grouped.min(-1), 0), np.maximum(grouped.max(-1), 0)
        step = ((high - low) / top).astype(scale_dtype).astype(np.float32)
        step[step == 0] = 1  # all weights are 0
        zero = np.clip(np.rint(-low / step), 0, top)
        scales[part], zeros[part] = step, zero
        q = np.clip(np.rint(grouped / step[..., None]) + zero[..., None], 0, top)
        integers[part] = q.reshape(-1, inputs)
    return Matrix(bits, group_size, integers, scales, zeros, np.zeros_like(scales))


def stack(matrices: Sequence[Matrix]) -> Matrix:
    """One matrix under the other; all of one width, bits and group size."""
    first = matrices[0]
    if len(matrices) == 1:
        return first
    parts = (np.concatenate([getattr(m, name) for m in matrices]) for name in ("integers", "scales", "zeros", "residual"))
    return Matrix(first.bits, first.group_size, *parts)


def pack(values: np.ndarray, bits: int) -> np.ndarray:
    """uint8 [N, n] -> uint8 [N, ceil(n * bits / 8)]: for 4 bits two to a byte, the first one low."""
    if bits == 8:
        return values
    if values.shape[1] % 2:
        values = np.pad(values, ((0, 0), (0, 1)))
    return values[:, ::2] | (values[:, 1::2] << 4)


def largest_errors(matrix: Matrix, expected: np.ndarray, dtype: np.dtype) -> tuple[float, float]:
    """(the largest |w - expected|, the largest share of its group's largest |expected|) with scales and residual rounded to
    `dtype`. What float32 arithmetic explains in a group counts as 0 there: an outlier elsewhere says nothing about it."""
    worst, share = [0.0], [0.0]
    for start in range(0, len(expected), CHUNK):
        part = slice(start, start + CHUNK)
        shape = (*matrix.scales[part].shape, matrix.group_size)
        scales, residual = (a[part, :, None].astype(dtype).astype(np.float32) for a in (matrix.scales, matrix.residual))
        steps = matrix.integers[part].reshape(shape).astype(np.float32) - matrix.zeros[part, :, None]
        wanted = expected[part].reshape(shape)
        error, size = np.abs(steps * scales + residual - wanted).max(-1), np.abs(wanted).max(-1)
        error[error <= 4 * ROUNDING * size] = 0
        worst.append(float(error.max(initial=0)))
        share.append(float(np.divide(error, size, out=np.where(error > 0, np.inf, 0.0), where=size > 0).max(initial=0)))
    return float(np.max(worst)), float(np.max(share))
