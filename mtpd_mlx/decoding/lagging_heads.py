"""The heads of a text whose rounds use now more of them, now fewer, now none: each head's cache ends where it was last used.

What a head needs to go on is kept meanwhile: the cascade's input at every position from the first one that some head has yet to
read. A head that is used again reads them all in one longer window (draft_chain.py), with the heads below it, so the base never
runs again. Entry s of head k is final once x_{s+k} is (docs/architecture.md); `final` says how many entries of each head are.
Called by choosing_rounds.py.
"""

from collections.abc import Callable, Sequence
from typing import Any

from mtpd_mlx.decoding.draft_chain import Choose, draft_chain, fill_chain
from mtpd_mlx.decoding.rewind import trim_to
from mtpd_mlx.model.base import Base
from mtpd_mlx.model.heads import MTPHeads
from mtpd_mlx.model.runtime import mx

LONGEST_WINDOW = 512  # positions that heads catch up with at once


class LaggingHeads:
    """`count` heads over a text of which `length` positions have states."""

    def __init__(self, base: Base, heads: MTPHeads, logits: Callable[[mx.array], mx.array], count: int):
        self.count = count
        self._base, self._heads, self._logits = base, heads, logits
        self.clear()

    def clear(self) -> None:
        self.caches: list[Any] = self._base.make_cache(self.count)
        self.final = [0] * self.count
        self.length = 0
        self._held: tuple[int, list[mx.array]] = (0, [])  # start; the rows from there on, in pieces
        self._drafted = (0, 0)  # how many positions there were when drafts were made last, and how many drafts

    def restore(self, caches: list[Any], length: int) -> None:
        """Goes on with caches that hold `length` positions, whose last `count` will be run again (`cut`)."""
        self.clear()
        self.caches, self.length, self._held = caches, length, (length, [])
        self.final = [length] * self.count

    def add(self, rows: mx.array) -> None:
        """rows [n, d]: the cascade's input at the next n positions."""
        start, held = self._held
        self._held = start, [*held, rows]
        self.length += rows.shape[0]

    def lag(self, count: int) -> int:
        """Positions that the first `count` heads read before they draft."""
        return self.length - min(self.final[:count])

    def draft(self, count: int, text: Sequence[int], following: mx.array, choose: Choose) -> mx.array:
        """The drafts [count] of the first heads behind `text` [length], which `following` [1] goes on. Nothing is evaluated,
        but for what is more than LONGEST_WINDOW behind."""
        if self.lag(count) > LONGEST_WINDOW:
            self.catch_up(count, text)
        rows, known = self.begin(count, text)
        tokens = mx.concatenate([mx.array(known, mx.uint32), following.astype(mx.uint32)])
        caches = self.caches[:count]
        drafts = draft_chain(self._base, self._heads, self._logits, rows[None], tokens[None], caches, choose)
        self.drafted(count)
        return drafts

    def begin(self, count: int, text: Sequence[int]) -> tuple[mx.array, list[int]]:
        """The window that the first `count` heads read before they draft: its rows [W, d], and the tokens of `text` [length]
        behind its first one [W - 1]. Caches end where it begins."""
        start = self._begin(count)
        return self._rows(start, self.length), list(text[start + 1 :])

    def drafted(self, count: int) -> None:
        """The first `count` heads have read the window, and drafted."""
        self._drafted = (self.length, count)
        self.accepted(0)

    def accepted(self, drafts: int) -> None:
        """So many of the last drafts are part of the text: the entries that were made with them are final."""
        length, count = self._drafted
        for k in range(1, count + 1):
            self.final[k - 1] = max(0, min(length, length + 1 + drafts - k))
        self._drop()

    def unconfirmed(self) -> None:
        """The text goes on with another token than the last drafts were made for, it may be."""
        self.final = self._sure()

    def _sure(self) -> list[int]:
        """`final` as far as the text alone says."""
        return [max(0, min(f, self.length - k)) for k, f in enumerate(self.final, 1)]

    def catch_up(self, count: int, text: Sequence[int]) -> None:
        """Reads, with the first `count` heads, all that `text` [length] makes final."""
        start = self._begin(count) if self.length else 0
        while start < self.length:
            end = min(start + LONGEST_WINDOW, self.length)
            known = list(text[start + 1 : end + count])
            known += [0] * (end - start + count - 1 - len(known))  # entries without a token yet are made again
            rows = self._rows(start, end)
            mx.eval(fill_chain(self._base, self._heads, rows[None], mx.array([known]), self.caches[:count]))
            start = end
        for k in range(1, count + 1):
            self.final[k - 1] = max(0, self.length - k)
        self._drop()

    def cut(self, length: int) -> None:
        """Keeps positions 0..length-1 of a text that goes on as it did for `count` positions more, or is empty."""
        self.length = length
        self.final = [min(f, length) for f in self.final]
        trim_to(self.caches, length)
        start, rows = self._joined()
        kept = rows is not None and length > start
        self._held = (start, [rows[: length - start]]) if rows is not None and kept else (length, [])

    def check(self, name: str, length: int) -> None:
        """RuntimeError, which begins with `name`, where these are not the heads of a text of `length` positions."""
        start, rows = self._joined()
        end = start + (0 if rows is None else rows.shape[0])
        if self.length != length or end != length or start > min(self._sure()):
            raise RuntimeError(f"{name}: got states of positions {start}..{end} for its heads, expected all up to {length}")
        for k, (cache, final) in enumerate(zip(self.caches, self.final, strict=True), 1):
            if not final <= cache.offset <= length:
                raise RuntimeError(f"{name}: got {cache.offset} positions in the cache of head {k}, expected {final}..{length}")

    def _rows(self, first: int, end: int) -> mx.array:
        start, rows = self._joined()
        assert rows is not None
        return rows[first - start : end - start]

    def _joined(self) -> tuple[int, mx.array | None]:
        """start, and all rows from there on: pieces are joined once, not one by one as they come."""
        start, held = self._held
        rows = mx.concatenate(held) if len(held) > 1 else held[0] if held else None
        self._held = start, held if rows is None else [rows]
        return start, rows

    def _begin(self, count: int) -> int:
        """The first position that one of these heads has yet to read; what is cached behind it goes."""
        start = min(*self.final[:count], self.length - 1)
        self.final[:count] = [start] * count  # should what follows be interrupted
        trim_to(self.caches[:count], start)
        return start

    def _drop(self) -> None:
        """Forgets rows that every head has read, whatever token comes next."""
        first, (start, rows) = min(self._sure()), self._joined()
        if rows is not None and first > start:
            self._held = first, [rows[first - start :]] if first < self.length else []
