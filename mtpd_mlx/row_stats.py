"""What a loss needs of a row of logits, read once: maximum, its place, and sums of exponentials.

On CUDA one kernel reads each row once. Elsewhere the same figures come from MLX's own operations.
"""

import platform
from dataclasses import dataclass
from functools import cache

from mtpd_mlx.mlx_runtime import mx, on_cpu, on_cuda

LOG2_E = 1.4426950408889634


@dataclass(frozen=True)
class RowStats:
    """Of logits z [R, V] and weights q [R, V] (below 0 outside a set S). All [R, 1] float32 but best [R].

    best: argmax; high: max z; total: sum exp(z - high); inside: the same sum over S; cross: sum over S of q (z - high).
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


def row_stats(z: mx.array, q: mx.array | None = None, whole: bool = True) -> RowStats:
    """z [R, V]; q [R, V] or None (inside and cross are then total and 0); whole: S is the whole vocabulary."""
    if on_cuda():
        return _by_kernel(z, q)
    z = z.astype(mx.float32)
    best = mx.argmax(z, axis=-1)
    high = mx.take_along_axis(z, best[:, None], axis=-1)
    shifted = z - high
    exps = exp(shifted)
    total = inside = exps.sum(axis=-1, keepdims=True)
    cross = mx.zeros_like(total)
    if q is not None:
        q = q.astype(mx.float32)
        if not whole:
            inside = (exps * (q >= 0)).sum(axis=-1, keepdims=True)
            q = mx.maximum(q, 0)
        cross = (q * shifted).sum(axis=-1, keepdims=True)
    return RowStats(best, high, total, inside, cross, exps)


def _by_kernel(z: mx.array, q: mx.array | None) -> RowStats:
    rows = z.shape[0]
    sums, best = _kernel()(
        inputs=[z, z if q is None else q],
        template=[("TEACHER", q is not None)],
        output_shapes=[(5, rows, 1), (rows,)],
        output_dtypes=[mx.float32, mx.uint32],
        grid=(rows * 512, 1, 1),
        threadgroup=(512, 1, 1),
    )
    high, total, inside, cross, mass = sums
    return RowStats(best, high, total, inside if q is not None else total, cross - mass * high, None)


@cache
def _kernel():  # type: ignore[no-untyped-def]
    return mx.fast.cuda_kernel(name="row_stats", input_names=["z", "q"], output_names=["sums", "best"], source=_SOURCE)


_SOURCE = r"""
  constexpr int AHEAD = 8;  // values in flight per thread
  const int tid = threadIdx.x, threads = blockDim.x, size = z_shape[1], rows = z_shape[0];
  const auto* zr = z + (long)blockIdx.x * size;
  const auto* qr = q + (long)blockIdx.x * size;
  float high = -INFINITY, total = 0, inside = 0, cross = 0, mass = 0;
  int where = size;
  for (int start = tid; start < size; start += AHEAD * threads) {
    float value[AHEAD], teacher[AHEAD];
    float peak = -INFINITY;
    for (int j = 0; j < AHEAD; j++) {
      const int i = start + j * threads;
      value[j] = i < size ? (float)zr[i] : -INFINITY;
      teacher[j] = TEACHER && i < size ? (float)qr[i] : -1.0f;
      peak = fmaxf(peak, value[j]);
    }
    if (peak > high) {
      const float scale = expf(high - peak);
      total *= scale; inside *= scale; high = peak;
      for (int j = AHEAD - 1; j >= 0; j--) if (value[j] == peak) where = start + j * threads;
    }
    for (int j = 0; j < AHEAD; j++) {
      if (start + j * threads >= size) break;
      const float e = expf(value[j] - high);
      total += e;
      if (teacher[j] >= 0) { inside += e; cross += teacher[j] * value[j]; mass += teacher[j]; }
    }
  }
  __shared__ float s[5][512];
  __shared__ int place[512];
  s[0][tid] = high; s[1][tid] = total; s[2][tid] = inside; s[3][tid] = cross; s[4][tid] = mass; place[tid] = where;
  __syncthreads();
  for (int half = threads / 2; half > 0; half /= 2) {
    if (tid < half) {
      const float a = s[0][tid], b = s[0][tid + half], top = fmaxf(a, b);
      const float from_a = a == top ? 1.0f : expf(a - top), from_b = b == top ? 1.0f : expf(b - top);
      for (int k = 1; k < 3; k++) s[k][tid] = s[k][tid] * from_a + s[k][tid + half] * from_b;
      for (int k = 3; k < 5; k++) s[k][tid] += s[k][tid + half];
      const int pa = place[tid], pb = place[tid + half];
      place[tid] = a > b ? pa : b > a ? pb : min(pa, pb);  // the first of equal values, as everywhere
      s[0][tid] = top;
    }
    __syncthreads();
  }
  if (tid < 5) sums[tid * rows + blockIdx.x] = s[tid][0];
  if (tid == 0) best[blockIdx.x] = place[0];
"""
