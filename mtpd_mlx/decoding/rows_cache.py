"""One block's caches of several texts, which a block takes for one cache: products are made of all texts at once, so that
weights are read once; attention goes text by text, over that text's own cache.

So a text joins, leaves and goes back without a copy of anything, none is padded to the longest one, and the caches are those
that it is decoded with when it is alone. Called by batch_rounds.py.
"""

import sys
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from mtpd_mlx.model.base import Base
from mtpd_mlx.model.blocks import make_mask, needs_arrays
from mtpd_mlx.model.runtime import mx, on_cpu, on_cuda
from mtpd_mlx.model.window_cache import WindowCache

ATTENTION = "scaled_dot_product_attention"


class RowsCache:
    """rows: one mlx-lm cache a text; offset int32 [B]: where each of them ends (what RoPE starts from), the same for all blocks
    of a pass. whole: attend over whole buffers behind a mask, so that shapes repeat (MLX CUDA plans for every new one)."""

    def __init__(self, rows: Sequence[Any], offset: mx.array, whole: bool = False):
        self.rows, self.offset, self._whole = rows, offset, whole

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """keys, values [B, kv heads, n, head_dim], as they are: `attend` puts them into the caches."""
        return keys, values

    def make_mask(self, N: int, return_array: bool = False, window_size: int | None = None) -> list[Any]:
        """One mask a text: as its own cache makes it, or where it ends and the window, to make one of whole buffers."""
        if self._whole:
            whole = [not isinstance(row, WindowCache) for row in self.rows]
            pairs = zip(self.rows, whole, strict=True)
            return [(row.offset, window_size) if every else make_mask(N, row, window_size) for row, every in pairs]
        masks = [make_mask(N, row, window_size) for row in self.rows]
        causal = all(mask is None or isinstance(mask, str) for mask in masks)
        return [Folded.of(row.offset, N) for row in self.rows] if causal and self._foldable() else masks

    def _foldable(self) -> bool:
        return on_cpu() and all(type(row).__name__ == "KVCache" for row in self.rows)

    def attend(
        self, attention: Any, queries: mx.array, keys: mx.array, values: mx.array, scale: float, masks: list[Any], more: Any
    ) -> mx.array:
        """queries [B, heads, n, head_dim] -> the same shape; `more`: what the family gives its attention besides."""
        shape, (_, groups, count, size) = queries.shape, keys.shape
        plain = isinstance(masks[0], Folded) and not any(value is not None for value in more.values())
        if plain:
            queries = (queries * scale).reshape(shape[0], groups, -1, size)  # [B, kv heads, query heads of each * n, head_dim]
        outs = []
        for i, (row, mask) in enumerate(zip(self.rows, masks, strict=True)):
            k, v = row.update_and_fetch(keys[i : i + 1], values[i : i + 1])
            if plain:
                outs.append(mask.attend(queries[i : i + 1], k, v))
                continue
            if isinstance(mask, Folded):
                mask = "causal" if count > 1 else None
            if isinstance(mask, tuple):
                k, v = row.keys, row.values
                mask = whole_mask(mask[0], count, k.shape[2], mask[1], queries.dtype)
            outs.append(attention(queries[i : i + 1], k, v, cache=row, scale=scale, mask=mask, **more))
        return mx.concatenate(outs).reshape(shape)


class Folded:
    """Causal attention on a CPU where query heads that share a key head are rows of one product: half the operations, and their
    number is what attention of few rows takes there. mask [n, cached + n], to be added; None for n = 1."""

    def __init__(self, mask: mx.array | None):
        self._mask = mask

    @classmethod
    def of(cls, offset: int, count: int) -> "Folded":
        """`count` rows behind `offset` cached positions."""
        return cls(None if count == 1 else whole_mask(offset, count, offset + count, None, mx.float32))

    def attend(self, queries: mx.array, keys: mx.array, values: mx.array) -> mx.array:
        """queries [1, kv heads, r * n, head_dim], scaled, the r heads of a group one after the other -> the same shape."""
        scores = queries @ keys.swapaxes(-1, -2)
        if self._mask is not None:
            n, length = self._mask.shape
            scores = (scores.reshape(*scores.shape[:2], -1, n, length) + self._mask).reshape(scores.shape)
        return mx.softmax(scores, axis=-1, precise=True) @ values


def whole_mask(offset: int | mx.array, count: int, capacity: int, window: int | None, dtype: mx.Dtype) -> mx.array:
    """[count, capacity], to be added: row i sees positions 0..offset+i, of these the last `window` where that is given. An
    offset [B, 1, 1] makes [B, count, capacity]."""
    places, rows = mx.arange(capacity)[None], offset + mx.arange(count)[:, None]
    seen = places <= rows
    if window is not None:
        seen = seen & (rows < places + window)
    return mx.where(seen, mx.array(0, dtype), mx.array(mx.finfo(dtype).min, dtype))


class RowsAttention:
    """A context in which blocks of this base take a RowsCache.

    Patches the name by which the family's module of mlx-lm calls attention. Broken by a family that calls it otherwise: see
    why_not.
    """

    def __init__(self, base: Base):
        self._module = _module_of(base)

    def __enter__(self) -> None:
        self._own = own = getattr(self._module, ATTENTION)

        def attention(queries: mx.array, keys: Any, values: Any, cache: Any, scale: float, mask: Any, **more: Any) -> mx.array:
            if isinstance(cache, RowsCache):
                return cache.attend(own, queries, keys, values, scale, mask, more)
            return own(queries, keys, values, cache=cache, scale=scale, mask=mask, **more)

        setattr(self._module, ATTENTION, attention)

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        setattr(self._module, ATTENTION, self._own)


def rows_caches(texts: Sequence[Sequence[Any]]) -> list[RowsCache]:
    """texts: the caches of each text, one a block -> one RowsCache a block."""
    offset = mx.array([caches[0].offset for caches in texts], mx.int32)
    return [RowsCache(rows, offset, on_cuda()) for rows in zip(*texts, strict=True)]


def why_not(base: Base) -> str | None:
    """What keeps this base's texts from being decoded side by side; None: nothing."""
    if base.dims.recurrent is not None:
        return f"{base.config.get('model_type')} has recurrent state"
    if needs_arrays(base.block_type) or not hasattr(_module_of(base), ATTENTION):
        return f"{base.config.get('model_type')} computes attention in a way of its own"
    return None


def _module_of(base: Base) -> Any:
    return sys.modules[base.block_type.__module__]
