"""`row_stats`: maximum of a row of logits, its place, and sums of exponentials, read once.
Called by losses/chunked.py and row_losses.py.

On CUDA one kernel (losses/cuda_kernels.py) reads each row once. Elsewhere the same figures come from MLX's own operations.
"""

import platform
from dataclasses import dataclass

from mtpd_mlx.losses import cuda_kernels as cuda_rows
from mtpd_mlx.model.runtime import mx, on_cpu, on_cuda

LOG2_E = 1.4426950408889634


@dataclass(frozen=True)
class RowStats:
    """Of logits z [R, V] and weights w [R, V] (below 0 outside a set S). All [R, 1] float32 but best [R].

    best: argmax; high: max z; total: sum exp(z - high); inside: the same sum over S; cross: sum over S of w (z - high).
    exps: exp(z - high) [R, V] where it was made on the way, else None.
    """

    best: mx.array
    high: mx.array
    total: mx.array
    inside: mx.array
    cross: mx.array
    exps: mx.array | None

    @property
    def logsumexp(self) -> mx.array:
        return self.high + mx.log(self.total)


def exp(x: mx.array) -> mx.array:
    """exp, by powf on x86 CPUs, where MLX's own exp takes 1.6 times as long (docs/log.md)."""
    if on_cpu() and platform.machine() == "x86_64":
        return mx.power(2.0, x * LOG2_E)
    return mx.exp(x)


def row_stats(z: mx.array, weights: mx.array | None = None, whole: bool = True) -> RowStats:
    """z, weights [R, V] (None: inside and cross are total and 0); whole: S is the whole vocabulary."""
    if on_cuda():
        return _by_kernel(z, weights)
    z = z.astype(mx.float32)
    best = mx.argmax(z, axis=-1)
    high = mx.take_along_axis(z, best[:, None], axis=-1)
    shifted = z - high
    exps = exp(shifted)
    total = inside = exps.sum(axis=-1, keepdims=True)
    cross = mx.zeros_like(total)
    if weights is not None:
        weights = weights.astype(mx.float32)
        if not whole:
            inside = (exps * (weights >= 0)).sum(axis=-1, keepdims=True)
            weights = mx.maximum(weights, 0)
        cross = (weights * shifted).sum(axis=-1, keepdims=True)
    return RowStats(best, high, total, inside, cross, exps)


def _by_kernel(z: mx.array, weights: mx.array | None) -> RowStats:
    sums, best = cuda_rows.stats(z, weights)
    high, total, inside, cross, mass = sums
    return RowStats(best, high, total, total if weights is None else inside, cross - mass * high, None)
