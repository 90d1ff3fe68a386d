"""`stats`, `teacher`, `gradient`, ...: CUDA kernels that read a row of logits once (one block per row).
Called by losses/row_losses.py and row_stats.py. tests/losses/test_cuda_rows.py and tests/cuda_emulator check them."""

from functools import cache
from typing import Any

from mtpd_mlx.losses import cuda_sources
from mtpd_mlx.model.runtime import mx

THREADS = 512


def stats(z: mx.array, weights: mx.array | None) -> tuple[mx.array, mx.array]:
    """z [R, V], weights [R, V] (below 0 outside a set S) or None -> sums [5, R, 1]: high, total, inside, cross, mass
    (RowStats; cross here is sum over S of weights z), and best [R]."""
    rows = z.shape[0]
    return _run(
        _stats_kernel(),
        [z, z if weights is None else weights],
        [("TEACHER", weights is not None)],
        [((5, rows, 1), mx.float32), ((rows,), mx.uint32)],
        z,
    )


def teacher(z: mx.array, high: mx.array, top_n: int) -> tuple[mx.array, mx.array]:
    """z [R, V], high [R, 1] -> weights [R, V] in z's dtype: exp(z - high) inside the top-N set, -1 outside; and [2, R, 1]: the
    sum of weights, and of weights (z - high), over the set."""
    rows = z.shape[0]
    bits = 8 * z.dtype.size
    options = [("RANK", min(top_n, z.shape[1])), ("BITS", bits), ("Key", mx.uint16 if bits == 16 else mx.uint32)]
    return _run(_teacher_kernel(), [z, high], options, [(z.shape, z.dtype), ((2, rows, 1), mx.float32)], z)


def gradient(z: mx.array, weights: mx.array | None, scalars: list[mx.array], targets: mx.array) -> mx.array:
    """exp(z - s0) (s1 + s2 [w >= 0]) - s3 max(w, 0) - s1 [v == target], [R, V] in z's dtype; scalars 4 x [R, 1] float32."""
    inputs = [z, z if weights is None else weights, _table(scalars, z), targets.astype(mx.int32)]
    return _run(_gradient_kernel(), inputs, [("TEACHER", weights is not None)], [(z.shape, z.dtype)], z)[0]


def tv_gradient(z: mx.array, weights: mx.array, scalars: list[mx.array], hybrid: bool) -> tuple[mx.array, mx.array]:
    """With p = exp(z - s0), q = s1 w, d = p - q, scalars 4 x [R, 1] float32: the gradient s2 (share d + (1 - share) p (sign d -
    sum p sign d) / 2) [R, V] in z's dtype, share = exp(-s3 (1 - tv)) where `hybrid`, else 0; and tv = sum |d| / 2 [R, 1]."""
    options = [("HYBRID", hybrid)]
    return _run(_tv_kernel(), [z, weights, _table(scalars, z)], options, [(z.shape, z.dtype), ((z.shape[0], 1), mx.float32)], z)


def kl_by_teacher(z: mx.array, weights: mx.array, scalars: list[mx.array]) -> mx.array:
    """With q = exp(-s0) w, gap = log q - (z - s1) where w >= 0, scalars 3 x [R, 1] float32: s2 q (gap - sum q gap), [R, V] in
    z's dtype: the gradient of the forward KL by the teacher's logits."""
    return _run(_by_teacher_kernel(), [z, weights, _table(scalars, z)], [], [(z.shape, z.dtype)], z)[0]


def _table(scalars: list[mx.array], z: mx.array) -> mx.array:
    """[R, number of scalars]"""
    return mx.concatenate([mx.broadcast_to(s, (z.shape[0], 1)) for s in scalars], axis=1)


def _run(kernel: Any, inputs: list[mx.array], options: list[Any], outputs: list[Any], z: mx.array) -> Any:
    width = 16 // z.dtype.size
    width = width if z.shape[1] % width == 0 else 1  # rows must start at vector boundaries
    return kernel(
        inputs=inputs,
        template=[("T", z.dtype), ("WIDTH", width), *options],
        output_shapes=[shape for shape, _ in outputs],
        output_dtypes=[dtype for _, dtype in outputs],
        grid=(z.shape[0] * THREADS, 1, 1),
        threadgroup=(THREADS, 1, 1),
    )


@cache
def _stats_kernel() -> Any:
    return _kernel("mtpd_row_stats", ["z", "w"], ["sums", "best"], cuda_sources.STATS)


@cache
def _teacher_kernel() -> Any:
    return _kernel("mtpd_teacher", ["z", "high"], ["weights", "sums"], cuda_sources.TEACHER)


@cache
def _gradient_kernel() -> Any:
    return _kernel("mtpd_row_gradient", ["z", "w", "scalars", "targets"], ["out"], cuda_sources.GRADIENT)


@cache
def _tv_kernel() -> Any:
    return _kernel("mtpd_row_tv", ["z", "w", "scalars"], ["out", "tv"], cuda_sources.TV)


@cache
def _by_teacher_kernel() -> Any:
    return _kernel("mtpd_row_kl_by_teacher", ["z", "w", "scalars"], ["out"], cuda_sources.KL_BY_TEACHER)


def _kernel(name: str, inputs: list[str], outputs: list[str], source: str) -> Any:
    return mx.fast.cuda_kernel(name=name, input_names=inputs, output_names=outputs, source=source, header=cuda_sources.HEADER)
