"""What the kernels of losses/cuda_kernels.py run, in CUDA C++: a header and a body each.
Called by cuda_kernels.py."""

HEADER = r"""
template <typename T, int N> struct alignas(sizeof(T) * N) Pack { T v[N]; };

template <typename T, int N> __device__ Pack<T, N> load(const T* at) { return *reinterpret_cast<const Pack<T, N>*>(at); }

template <typename T, int N> __device__ void store(T* at, Pack<T, N> p) { *reinterpret_cast<Pack<T, N>*>(at) = p; }
"""

STATS = r"""
  constexpr int PACKS = 16 / WIDTH;  // 16 values in flight per thread
  const int tid = threadIdx.x, threads = blockDim.x, size = z_shape[1], rows = z_shape[0];
  const T* zr = z + (long)blockIdx.x * size;
  const T* wr = w + (long)blockIdx.x * size;
  float high = -INFINITY, total = 0, inside = 0, cross = 0, mass = 0;
  int where = size;
  for (int start = tid * WIDTH; start < size; start += PACKS * threads * WIDTH) {
    Pack<T, WIDTH> value[PACKS], weight[PACKS];
    float peak = -INFINITY;
    for (int p = 0; p < PACKS; p++) {
      const int i = start + p * threads * WIDTH;
      if (i < size) {
        value[p] = load<T, WIDTH>(zr + i);
        if (TEACHER) weight[p] = load<T, WIDTH>(wr + i);
        for (int j = 0; j < WIDTH; j++) peak = fmaxf(peak, (float)value[p].v[j]);
      }
    }
    if (peak > high) {
      const float scale = expf(high - peak);
      total *= scale; inside *= scale; high = peak;
      for (int p = PACKS - 1; p >= 0; p--)
        for (int j = WIDTH - 1; j >= 0; j--) {
          const int i = start + p * threads * WIDTH + j;
          if (i < size && (float)value[p].v[j] == peak) where = i;
        }
    }
    for (int p = 0; p < PACKS; p++) {
      if (start + p * threads * WIDTH >= size) break;
      for (int j = 0; j < WIDTH; j++) {
        const float x = (float)value[p].v[j], e = x == -INFINITY ? 0.0f : expf(x - high);  // NaN stays NaN
        total += e;
        if (TEACHER) {
          const float u = (float)weight[p].v[j];
          if (u >= 0) { inside += e; cross += u * x; mass += u; }
        }
      }
    }
  }
  __shared__ float s[5][512];
  __shared__ int place[512];
  s[0][tid] = high; s[1][tid] = total; s[2][tid] = inside; s[3][tid] = cross; s[4][tid] = mass; 
  place[tid] = where < size ? where : 0;
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

TEACHER = r"""
  constexpr int DIGIT = 11, BINS = 1 << DIGIT, COPIES = 4;  // copies spread the atomics on the few common exponents
  __shared__ unsigned counts[COPIES][BINS];
  __shared__ unsigned chosen, rank;
  __shared__ float partial[2][512];
  const int tid = threadIdx.x, threads = blockDim.x, size = z_shape[1], rows = z_shape[0];
  const unsigned sign = 1u << (BITS - 1), all = BITS == 32 ? 0xffffffffu : (1u << BITS) - 1;
  const T* zr = z + (long)blockIdx.x * size;
  auto ordered = [&](T value) {  // unsigned integers in the order of the floating-point values
    const unsigned bits = *reinterpret_cast<const Key*>(&value);
    return bits & sign ? ~bits & all : bits | sign;
  };
  if (tid == 0) { chosen = 0; rank = RANK; }
  for (int done = 0; done < BITS && RANK < size; done += DIGIT) {
    const int width = BITS - done < DIGIT ? BITS - done : DIGIT, shift = BITS - done - width, bins = 1 << width;
    for (int i = tid; i < COPIES * BINS; i += threads) (&counts[0][0])[i] = 0;
    __syncthreads();
    const unsigned prefix = chosen, wanted = rank;
    unsigned* mine = counts[tid % COPIES];
    for (int i = tid * WIDTH; i < size; i += threads * WIDTH) {
      const Pack<T, WIDTH> value = load<T, WIDTH>(zr + i);
      for (int j = 0; j < WIDTH; j++) {
        const unsigned key = ordered(value.v[j]);
        if (done == 0 || (key >> (shift + width)) == prefix) atomicAdd(&mine[(key >> shift) & (bins - 1)], 1u);
      }
    }
    __syncthreads();
    if (tid < 32) {  // one warp walks down the bins until the count from above reaches the wanted rank
      unsigned above = 0;
      for (int top = bins - 32; top >= 0 && above < wanted; top -= 32) {
        const int bin = top + 31 - tid;
        const unsigned here = counts[0][bin] + counts[1][bin] + counts[2][bin] + counts[3][bin];
        unsigned sum = here;
        for (int step = 1; step < 32; step *= 2) {
          const unsigned other = __shfl_up_sync(0xffffffffu, sum, step);
          if (tid >= step) sum += other;
        }
        if (above + sum >= wanted && above + sum - here < wanted) {
          chosen = (prefix << width) | bin;
          rank = wanted - (above + sum - here);
        }
        above += __shfl_sync(0xffffffffu, sum, 31);
      }
    }
    __syncthreads();
  }
  const unsigned threshold = chosen;
  const float top = high[blockIdx.x];
  float mass = 0, cross = 0;
  for (int i = tid * WIDTH; i < size; i += threads * WIDTH) {
    const Pack<T, WIDTH> value = load<T, WIDTH>(zr + i);
    Pack<T, WIDTH> weight;
    for (int j = 0; j < WIDTH; j++) {
      weight.v[j] = static_cast<T>(-1.0f);
      if (RANK >= size || ordered(value.v[j]) >= threshold) {
        const float shifted = (float)value.v[j] - top;
        weight.v[j] = static_cast<T>(expf(shifted));
        mass += (float)weight.v[j];
        cross += (float)weight.v[j] * shifted;
      }
    }
    store<T, WIDTH>(weights + (long)blockIdx.x * size + i, weight);
  }
  partial[0][tid] = mass; partial[1][tid] = cross;
  __syncthreads();
  for (int half = threads / 2; half > 0; half /= 2) {
    if (tid < half) for (int k = 0; k < 2; k++) partial[k][tid] += partial[k][tid + half];
    __syncthreads();
  }
  if (tid < 2) sums[tid * rows + blockIdx.x] = partial[tid][0];
"""

GRADIENT = r"""
  const int size = z_shape[1], target = targets[blockIdx.x];
  const long offset = (long)blockIdx.x * size;
  const float lse = scalars[4 * blockIdx.x], everywhere = scalars[4 * blockIdx.x + 1];
  const float within = scalars[4 * blockIdx.x + 2], teaching = scalars[4 * blockIdx.x + 3];
  for (int i = threadIdx.x * WIDTH; i < size; i += blockDim.x * WIDTH) {
    const Pack<T, WIDTH> value = load<T, WIDTH>(z + offset + i);
    Pack<T, WIDTH> weight, result;
    if (TEACHER) weight = load<T, WIDTH>(w + offset + i);
    for (int j = 0; j < WIDTH; j++) {
      const float p = expf((float)value.v[j] - lse);
      float g = everywhere * p;
      if (TEACHER) {
        const float u = (float)weight.v[j];
        if (u >= 0) g += within * p - teaching * u;
      }
      if (i + j == target) g -= everywhere;
      result.v[j] = static_cast<T>(g);
    }
    store<T, WIDTH>(out + offset + i, result);
  }
"""

TV = r"""
  __shared__ float partial[2][512];
  const int tid = threadIdx.x, threads = blockDim.x, size = z_shape[1];
  const long offset = (long)blockIdx.x * size;
  const float lse = scalars[4 * blockIdx.x], per_mass = scalars[4 * blockIdx.x + 1];
  const float scale = scalars[4 * blockIdx.x + 2], eta = scalars[4 * blockIdx.x + 3];
  auto sign = [](float d) { return d > 0 ? 1.0f : d < 0 ? -1.0f : 0.0f; };
  float apart = 0, signs = 0;
  for (int i = tid * WIDTH; i < size; i += threads * WIDTH) {
    const Pack<T, WIDTH> value = load<T, WIDTH>(z + offset + i), weight = load<T, WIDTH>(w + offset + i);
    for (int j = 0; j < WIDTH; j++) {
      const float p = expf((float)value.v[j] - lse), d = p - per_mass * (float)weight.v[j];
      apart += fabsf(d);
      signs += sign(d) * p;
    }
  }
  partial[0][tid] = apart; partial[1][tid] = signs;
  __syncthreads();
  for (int half = threads / 2; half > 0; half /= 2) {
    if (tid < half) for (int k = 0; k < 2; k++) partial[k][tid] += partial[k][tid + half];
    __syncthreads();
  }
  const float distance = 0.5f * partial[0][0], mean = partial[1][0];
  const float share = HYBRID ? expf(-eta * (1.0f - distance)) : 0.0f;
  if (tid == 0) tv[blockIdx.x] = distance;
  for (int i = tid * WIDTH; i < size; i += threads * WIDTH) {
    const Pack<T, WIDTH> value = load<T, WIDTH>(z + offset + i), weight = load<T, WIDTH>(w + offset + i);
    Pack<T, WIDTH> result;
    for (int j = 0; j < WIDTH; j++) {
      const float p = expf((float)value.v[j] - lse), d = p - per_mass * (float)weight.v[j];
      result.v[j] = static_cast<T>(scale * (share * d + (1.0f - share) * 0.5f * p * (sign(d) - mean)));
    }
    store<T, WIDTH>(out + offset + i, result);
  }
"""

KL_BY_TEACHER = r"""
  __shared__ float partial[512];
  const int tid = threadIdx.x, threads = blockDim.x, size = z_shape[1];
  const long offset = (long)blockIdx.x * size;
  const float log_mass = scalars[3 * blockIdx.x], lse = scalars[3 * blockIdx.x + 1], scale = scalars[3 * blockIdx.x + 2];
  const float per_mass = expf(-log_mass);
  auto gap = [&](float u, float x) { return logf(fmaxf(u, 1e-30f)) - log_mass - (x - lse); };
  float sum = 0;
  for (int i = tid * WIDTH; i < size; i += threads * WIDTH) {
    const Pack<T, WIDTH> value = load<T, WIDTH>(z + offset + i), weight = load<T, WIDTH>(w + offset + i);
    for (int j = 0; j < WIDTH; j++) {
      const float u = (float)weight.v[j];
      if (u > 0) sum += u * gap(u, (float)value.v[j]);
    }
  }
  partial[tid] = sum;
  __syncthreads();
  for (int half = threads / 2; half > 0; half /= 2) {
    if (tid < half) partial[tid] += partial[tid + half];
    __syncthreads();
  }
  const float divergence = partial[0] * per_mass;
  for (int i = tid * WIDTH; i < size; i += threads * WIDTH) {
    const Pack<T, WIDTH> value = load<T, WIDTH>(z + offset + i), weight = load<T, WIDTH>(w + offset + i);
    Pack<T, WIDTH> result;
    for (int j = 0; j < WIDTH; j++) {
      const float u = (float)weight.v[j];
      result.v[j] = static_cast<T>(u > 0 ? scale * per_mass * u * (gap(u, (float)value.v[j]) - divergence) : 0.0f);
    }
    store<T, WIDTH>(out + offset + i, result);
  }
"""
