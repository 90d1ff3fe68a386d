"""`FixedCache`: KV caches of fixed capacity whose length is an array, and conversion from and to growing ones.
Called by fixed_rounds.py and fixed_buffers.py.

On MLX CUDA a cache that grows makes a new attention plan for every length (about 50 ms for 2..17 tokens), and a host that must
know the length has to wait for it. A fixed buffer has neither fault; rows from `offset` on hold leftovers that the mask hides.
"""

from collections.abc import Callable, Sequence
from typing import Any

from mtpd_mlx.families.dims import HELD
from mtpd_mlx.model.runtime import mx, on_cuda
from mtpd_mlx.model.window_cache import WindowCache

SMALLEST = 256  # positions of the smallest buffer (mlx-lm's caches grow by as many)
Rows = tuple[mx.array, mx.array]  # keys, values [1, kv heads, capacity, head_dim]
WRITES = ("slice", "scatter")


class Span:
    """The new positions of a pass, from `offset` (int32 [], part of the graph) on.
    Masks and places are made once for all caches."""

    def __init__(self, offset: mx.array):
        self.offset = offset
        self._made: dict[tuple[Any, ...], mx.array] = {}

    def _once(self, key: tuple[Any, ...], make: Callable[[], mx.array]) -> mx.array:
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def mask(self, count: int, capacity: int, window: int | None, dtype: mx.Dtype) -> mx.array:
        """[count, capacity]: row i sees positions 0..offset+i, of these the last `window` where that is given."""

        def make() -> mx.array:
            places, rows = mx.arange(capacity)[None], (self.offset + mx.arange(count))[:, None]
            seen = places <= rows
            if window is not None:
                seen = seen & (rows < places + window)
            if not on_cuda():
                return seen
            # CUDA's kernels add masks: converted once here instead of once per block
            return mx.where(seen, mx.array(0, dtype), mx.array(mx.finfo(dtype).min, dtype))

        return self._once(("mask", count, capacity, window, dtype), make)

    def places(self, shape: tuple[int, ...]) -> mx.array:
        """[1, kv heads, n, head_dim]: the position of each new element."""
        return self._once(
            ("places", *shape),
            lambda: mx.broadcast_to((self.offset + mx.arange(shape[2]))[None, None, :, None], shape),
        )


class FixedCache:
    """One block's cache inside a graph: written where `span` says, read whole. `write`: one of WRITES, same values."""

    def __init__(self, rows: Rows, span: Span, write: str = "slice"):
        self.keys, self.values = rows
        self._span = span
        self._write = _by_slice if write == "slice" else _by_scatter

    @property
    def offset(self) -> mx.array:
        """int32 []: positions that were cached before this pass (what RoPE starts from)."""
        return self._span.offset

    @property
    def rows(self) -> Rows:
        """The whole buffers, rows from `offset` on included."""
        return self.keys, self.values

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> Rows:
        """keys, values [1, kv heads, n, head_dim] of positions offset..offset+n-1; returns the whole buffers."""
        self.keys = self._write(self.keys, keys, self._span)
        self.values = self._write(self.values, values, self._span)
        return self.rows

    def make_mask(self, N: int, return_array: bool = False, window_size: int | None = None) -> mx.array:
        """[N, capacity]"""
        return self._span.mask(N, self.keys.shape[2], window_size, self.keys.dtype)


def _by_slice(buffer: mx.array, rows: mx.array, span: Span) -> mx.array:
    return mx.slice_update(buffer, rows.astype(buffer.dtype), span.offset[None], (2,))


def _by_scatter(buffer: mx.array, rows: mx.array, span: Span) -> mx.array:
    return mx.put_along_axis(buffer, span.places(rows.shape), rows.astype(buffer.dtype), axis=2)


def bucket(positions: int) -> int:
    """Capacity of a buffer for so many positions: a power of two, so that few shapes are ever seen."""
    return max(SMALLEST, 1 << (positions - 1).bit_length())


def to_fixed(cache: Any, length: int, capacity: int) -> Rows:
    """The first `length` positions of an mlx-lm cache in buffers [1, kv heads, capacity, head_dim].

    ValueError where it is no plain KVCache.
    """
    check_fixable([cache])
    rows: tuple[mx.array, ...] = cache.keys, cache.values
    if isinstance(cache, WindowCache):  # the positions before are seen no more: whatever lies there
        rows = tuple(mx.pad(x, [(0, 0), (0, 0), (cache.start, 0), (0, 0)]) for x in cache.rows)
    keys, values = (x[:, :, :length] for x in rows)
    return padded((keys, values), capacity)


def padded(rows: Rows, capacity: int) -> Rows:
    """Buffers of `capacity` positions that begin with `rows`."""
    missing = capacity - rows[0].shape[2]
    if missing <= 0:
        return rows
    keys, values = (mx.pad(x, [(0, 0), (0, 0), (0, missing), (0, 0)]) for x in rows)
    return keys, values


def to_growing(rows: Rows, length: int, window: int | None = None) -> Any:
    """An mlx-lm cache of the first `length` positions; of a sliding layer's last ones, where its `window` is given."""
    from mlx_lm.models.cache import KVCache

    if window is not None:
        last = WindowCache(window)
        start = max(0, length - (window - 1 + HELD))
        last.restore(length, tuple(mx.contiguous(x[:, :, start:length]) for x in rows))
        return last
    cache = KVCache()
    cache.keys, cache.values = (x[:, :, :length] for x in rows)
    cache.offset = length
    return cache


def check_fixable(caches: Sequence[Any]) -> None:
    """ValueError where a cache is no plain KVCache (quantised, rotating): fixed buffers hold keys and values as they are."""
    for cache in caches:
        if type(cache).__name__ not in ("KVCache", "WindowCache"):
            raise ValueError(f"fixed cache: got {type(cache).__name__}, expected KVCache")
