"""`WindowCache`: keys and values of a layer that looks back at a window of positions alone, and the way back.
Made by Base.make_cache; read by mlx-lm's attention, and by decoding/ where texts go back.

mlx-lm's rotating cache overwrites what leaves the window, so that a rejected draft cannot be undone. Here the HELD positions
before the window are kept too: a round that is taken back has overwritten nothing that the window needs.
"""

from typing import Any

from mtpd_mlx.families.dims import HELD, WINDOW_STEP
from mtpd_mlx.model.runtime import mx

Rows = tuple[mx.array, ...]  # keys, values [1, kv heads, rows, head_dim], oldest position first


class WindowCache:
    """Batch 1. `offset`: positions read; `start`: the first one whose rows are held, in order, from the buffers' front on."""

    def __init__(self, window: int):
        self.window = window
        self.restore(0, ())

    def restore(self, offset: int, rows: Rows) -> None:
        """Goes on behind `offset` positions, of which these are the last ones. ValueError for fewer than the window needs."""
        held = rows[0].shape[2] if rows else 0
        if held > offset or held < min(offset, self.window - 1):
            raise ValueError(f"window cache: got {held} rows, expected {min(offset, self.window - 1)}..{offset}")
        self.offset, self._end = offset, held
        self.keys: mx.array | None = rows[0] if rows else None
        self.values: mx.array | None = rows[1] if rows else None

    @property
    def start(self) -> int:
        return self.offset - self._end

    @property
    def reach(self) -> int:
        """The smallest length that `trim` can go back to."""
        return self.start + self.window - 1 if self.start else 0

    @property
    def rows(self) -> Rows:
        """What is held, from `start` on; () before the first position."""
        if self.keys is None or self.values is None:
            return ()
        return self.keys[:, :, : self._end], self.values[:, :, : self._end]

    @property
    def state(self) -> Rows:
        """Copies of the rows that the next position sees: what `restore` goes on with."""
        return tuple(mx.contiguous(x[:, :, max(0, self._end - self.window + 1) :]) for x in self.rows)

    @property
    def arrays(self) -> list[mx.array]:
        """All that is held."""
        return [x for x in (self.keys, self.values) if x is not None]

    @property
    def nbytes(self) -> int:
        return sum(x.nbytes for x in self.arrays)

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> Rows:
        """keys, values [1, kv heads, n, head_dim] of the next n positions -> these behind the window before the first one."""
        n, before = keys.shape[2], min(self.offset, self.window - 1)
        self.offset += n
        room = 0 if self.keys is None else self.keys.shape[2]
        if self._end + n > room and self._end + n > self.window - 1 + HELD + WINDOW_STEP:
            old, self.keys, self.values = self.rows or (keys[:, :, :0], values[:, :, :0]), None, None
            whole = [mx.concatenate([held, new], axis=2) for held, new in zip(old, (keys, values), strict=True)]
            self._end = min(whole[0].shape[2], self.window - 1 + HELD)
            self.keys, self.values = (_in_buffer(x[:, :, -self._end :], self._end + WINDOW_STEP) for x in whole)
            return whole[0][:, :, -before - n :], whole[1][:, :, -before - n :]
        if self._end + n > room:
            size = WINDOW_STEP * -(-(self._end + n) // WINDOW_STEP)
            self.keys, self.values = (_in_buffer(x, size) for x in self.rows or (keys[:, :, :0], values[:, :, :0]))
        assert self.keys is not None and self.values is not None
        first, self._end = self._end, self._end + n
        self.keys[:, :, first : self._end] = keys
        self.values[:, :, first : self._end] = values
        return self.keys[:, :, first - before : self._end], self.values[:, :, first - before : self._end]

    def make_mask(self, N: int, return_array: bool = False, window_size: int | None = None) -> Any:
        """Of N new rows over what `update_and_fetch` will return: None, "causal", or bool [N, min(offset, window - 1) + N].
        The window is the cache's own."""
        from mlx_lm.models.base import create_causal_mask

        before = min(self.offset, self.window - 1)
        if return_array or before + N > self.window:
            return create_causal_mask(N, before, window_size=self.window)
        return "causal" if N > 1 else None

    def is_trimmable(self) -> bool:
        return True

    def trim(self, n: int) -> int:
        """Takes the last n positions back. ValueError beyond `reach`."""
        length = self.offset - n
        if not self.reach <= length <= self.offset:
            raise ValueError(f"window cache: cannot go back to {length} positions, expected {self.reach}..{self.offset}")
        self._end -= n
        self.offset = length
        return n


def _in_buffer(rows: mx.array, size: int) -> mx.array:
    """A new buffer of `size` rows that begins with these."""
    missing = [(0, 0), (0, 0), (0, size - rows.shape[2]), (0, 0)]
    return mx.pad(rows, missing)
