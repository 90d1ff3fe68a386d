"""The N-th largest value of every row, without sorting: the threshold of a top-N set.

A top-N set is {v : z_v >= threshold}: values equal to the N-th largest all belong to it, so the set does not depend on the
order in which a sort would have met them.
"""

from functools import cache

from mtpd_mlx.mlx_runtime import mx, on_cpu, on_cuda


def nth_largest(z: mx.array, n: int) -> mx.array:
    """z [R, V] floating point, 1 <= n <= V -> the n-th largest value of each row [R, 1], in the dtype of z."""
    if not 1 <= n <= z.shape[-1]:
        raise ValueError(f"nth_largest: got n = {n}, expected 1..{z.shape[-1]}")
    if on_cpu():
        place = z.shape[-1] - n
        return mx.partition(z, place, axis=-1)[:, place : place + 1]
    return by_radix(z, n) if on_cuda() else by_bisection(z, n)


def ordered_keys(z: mx.array) -> mx.array:
    """Unsigned integers in the order of the floating-point values (-0.0 just below 0.0)."""
    bits = 8 * z.dtype.size
    keys = z.view(mx.uint16 if bits == 16 else mx.uint32)
    sign = mx.array(1 << (bits - 1), keys.dtype)
    return mx.where(keys >= sign, ~keys, keys | sign)


def from_ordered_keys(keys: mx.array, dtype: mx.Dtype) -> mx.array:
    sign = mx.array(1 << (8 * keys.dtype.size - 1), keys.dtype)
    return mx.where(keys >= sign, keys ^ sign, ~keys).view(dtype)


def by_bisection(z: mx.array, n: int) -> mx.array:
    """One counting pass per bit, on any device."""
    keys = ordered_keys(z)
    found = mx.zeros((z.shape[0], 1), keys.dtype)
    for bit in reversed(range(8 * keys.dtype.size)):
        candidate = found | mx.array(1 << bit, keys.dtype)
        enough = (keys >= candidate).sum(axis=-1, keepdims=True) >= n
        found = mx.where(enough, candidate, found)
    return from_ordered_keys(found, z.dtype)


def by_radix(z: mx.array, n: int) -> mx.array:
    """CUDA: one block per row narrows the key down by 11 bits a pass, with histograms in shared memory."""
    bits = 8 * z.dtype.size
    raw = z.view(mx.uint16 if bits == 16 else mx.uint32)
    (found,) = _radix_kernel()(
        inputs=[raw],
        template=[("BITS", bits), ("RANK", n), ("Key", raw.dtype)],
        output_shapes=[(z.shape[0], 1)],
        output_dtypes=[raw.dtype],
        grid=(z.shape[0] * 512, 1, 1),
        threadgroup=(512, 1, 1),
    )
    return from_ordered_keys(found, z.dtype)


@cache
def _radix_kernel():  # type: ignore[no-untyped-def]
    return mx.fast.cuda_kernel(name="nth_largest", input_names=["raw"], output_names=["found"], source=_RADIX)


_RADIX = r"""
  constexpr int DIGIT = 11, BINS = 1 << DIGIT, COPIES = 4;  // copies spread the atomics on the few common exponents
  __shared__ unsigned counts[COPIES][BINS];
  __shared__ unsigned chosen, rank;
  const int tid = threadIdx.x, size = raw_shape[1];
  const unsigned sign = 1u << (BITS - 1), all = BITS == 32 ? 0xffffffffu : (1u << BITS) - 1;
  const Key* row = raw + (long)blockIdx.x * size;
  if (tid == 0) { chosen = 0; rank = RANK; }
  for (int done = 0; done < BITS; done += DIGIT) {
    const int width = BITS - done < DIGIT ? BITS - done : DIGIT, shift = BITS - done - width, bins = 1 << width;
    for (int i = tid; i < COPIES * BINS; i += blockDim.x) (&counts[0][0])[i] = 0;
    __syncthreads();
    const unsigned prefix = chosen, wanted = rank;
    unsigned* mine = counts[tid % COPIES];
    for (int i = tid; i < size; i += blockDim.x) {
      const unsigned bits = row[i], key = bits & sign ? ~bits & all : bits | sign;
      if (done == 0 || (key >> (shift + width)) == prefix) atomicAdd(&mine[(key >> shift) & (bins - 1)], 1u);
    }
    __syncthreads();
    // Suffix sums over the bins by one warp: the bin in which the count from above reaches the wanted rank.
    if (tid < 32) {
      unsigned above = 0;
      for (int top = bins - 32; top >= 0; top -= 32) {
        const int bin = top + 31 - tid;
        unsigned here = counts[0][bin] + counts[1][bin] + counts[2][bin] + counts[3][bin], sum = here;
        for (int step = 1; step < 32; step *= 2) {
          const unsigned other = __shfl_up_sync(0xffffffffu, sum, step);
          if (tid >= step) sum += other;
        }
        if (above + sum >= wanted && above + sum - here < wanted) {
          chosen = (prefix << width) | bin;
          rank = wanted - (above + sum - here);
        }
        above += __shfl_sync(0xffffffffu, sum, 31);
        if (above >= wanted) break;
      }
    }
    __syncthreads();
  }
  if (tid == 0) found[blockIdx.x] = (Key)chosen;
"""
