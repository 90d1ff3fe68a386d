"""`Stacks`: caches of several texts in one buffer a block, which batched rounds on a GPU write and read by a few operations.

On a GPU a round takes as long as its operations take to enqueue, and attention text by text (rows_cache.py) has many of them.
There the texts of a round lie in one buffer [B, kv heads, capacity, head_dim], each from 0 to its own end; rows behind an end
are leftovers that a mask hides. It is made anew where other texts take part, which copies them. Meanwhile the texts' own
caches say how long they are, and nothing else: `give_back` before their keys and values are looked at. Called by batch.py and
batch_rounds.py.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from mtpd_mlx.decoding.fixed_cache import bucket, padded
from mtpd_mlx.decoding.rows_cache import RowsCache, rows_caches, whole_mask
from mtpd_mlx.model.runtime import mx

Masks = dict[tuple[Any, ...], mx.array]  # and places: made once a pass


class Stack:
    """The caches of some blocks, by text."""

    def __init__(self) -> None:
        self._texts: list[list[Any]] = []
        self.buffers: list[tuple[mx.array, mx.array]] = []  # keys, values of each block

    def caches(self, texts: Sequence[Sequence[Any]], width: int) -> list[RowsCache]:
        """One cache a block for a pass over `width` more positions of these texts (their mlx-lm caches, one a block)."""
        if not all(type(cache).__name__ == "KVCache" and cache.keys is not None for text in texts for cache in text):
            self.give_back()
            return rows_caches(texts)
        most = max(text[0].offset for text in texts) + width
        if not self._holds(texts) or most > self.buffers[0][0].shape[2]:
            self._gather(texts, bucket(most))
        offset = mx.array([text[0].offset for text in texts], mx.int32)
        made: Masks = {}
        return [StackedCache(self, i, [text[i] for text in texts], offset, made) for i in range(len(texts[0]))]

    def _holds(self, texts: Sequence[Sequence[Any]]) -> bool:
        """The same caches, in the same order."""
        held = [id(cache) for text in self._texts for cache in text]
        return held == [id(cache) for text in texts for cache in text]

    def _gather(self, texts: Sequence[Sequence[Any]], capacity: int) -> None:
        self.give_back()
        for block in zip(*texts, strict=True):
            rows = [padded((cache.keys[:, :, :capacity], cache.values[:, :, :capacity]), capacity) for cache in block]
            self.buffers.append((mx.concatenate([k for k, _ in rows]), mx.concatenate([v for _, v in rows])))
        self._texts = [list(text) for text in texts]
        mx.eval(self.buffers)

    def give_back(self) -> None:
        """The texts' own caches hold their keys and values again."""
        kept = []
        for i, text in enumerate(self._texts):
            for cache, (keys, values) in zip(text, self.buffers, strict=True):
                cache.keys, cache.values = (mx.contiguous(each[i : i + 1]) for each in (keys, values))
                kept += [cache.keys, cache.values]
        mx.eval(kept)
        self._texts, self.buffers = [], []


class Stacks:
    """base: of the base's layers. heads: of head 1, 2, .., each by itself, since they may end elsewhere."""

    def __init__(self) -> None:
        self.base, self.heads = Stack(), defaultdict[int, Stack](Stack)

    def give_back(self) -> None:
        for stack in (self.base, *self.heads.values()):
            stack.give_back()


class StackedCache(RowsCache):
    """Block `place` of a stack. rows: the texts' own caches; offset int32 [B]; made: what the blocks of a pass share."""

    def __init__(self, stack: Stack, place: int, rows: Sequence[Any], offset: mx.array, made: Masks):
        super().__init__(rows, offset)
        self._stack, self._place, self._made = stack, place, made

    def make_mask(self, N: int, return_array: bool = False, window_size: int | None = None) -> list[Any]:
        """The window: masks are made where the buffers are known."""
        return [window_size]

    def attend(
        self, attention: Any, queries: mx.array, keys: mx.array, values: mx.array, scale: float, masks: list[Any], more: Any
    ) -> mx.array:
        old, count = self._stack.buffers[self._place], keys.shape[2]
        made = [
            mx.put_along_axis(buffer, self._places(new.shape), new.astype(buffer.dtype), axis=2)
            for buffer, new in zip(old, (keys, values), strict=True)
        ]
        self._stack.buffers[self._place] = made[0], made[1]
        for row in self.rows:
            row.offset += count
        mask = self._mask(count, made[0].shape[2], masks[0], queries.dtype)
        return attention(queries, *made, cache=self.rows[0], scale=scale, mask=mask, **more)

    def _places(self, shape: tuple[int, ...]) -> mx.array:
        if shape not in self._made:
            positions = self.offset[:, None] + mx.arange(shape[2])[None]
            self._made[shape] = mx.broadcast_to(positions[:, None, :, None], shape)
        return self._made[shape]

    def _mask(self, count: int, capacity: int, window: int | None, dtype: mx.Dtype) -> mx.array:
        """[B, 1, n, capacity], to be added."""
        key = count, capacity, window, dtype
        if key not in self._made:
            self._made[key] = whole_mask(self.offset[:, None, None], count, capacity, window, dtype)[:, None]
        return self._made[key]
