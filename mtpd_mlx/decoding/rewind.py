"""`trim_to`, `Transaction`, `Marks`: positions taken back from a base's caches, recurrent state and windows included.
Called by every way of decoding.

`trim_to` goes back a few positions, as rounds do: as far as `reach_of` says. `Transaction` is the same for one pass. `Marks`
goes back to any length, with a few positions to read again behind it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from mtpd_mlx.families.dims import HELD, MARKS
from mtpd_mlx.model.recurrent.cache import Arrays, RecurrentCache
from mtpd_mlx.model.recurrent.pairs import Stateless
from mtpd_mlx.model.runtime import mx
from mtpd_mlx.model.window_cache import WindowCache

APART = 64  # positions
BOUND = (RecurrentCache, WindowCache)  # caches that go back so far and no further, but can be put where they were


def trim_to(caches: Sequence[Any], length: int) -> None:
    """Keeps positions 0..length-1; a cache that is shorter stays as it is. ValueError beyond the reach of recurrent state and
    of windows."""
    for cache in caches:
        if cache.offset > length:
            cache.trim(cache.offset - length)


def reach_of(caches: Sequence[Any]) -> int:
    """The smallest length that trim_to can go back to."""
    return max((cache.reach for cache in caches if isinstance(cache, BOUND)), default=0)


def arrays_of(caches: Sequence[Any]) -> list[Any]:
    """What the caches hold, to be evaluated."""
    return [cache.arrays if isinstance(cache, BOUND) else cache.state for cache in caches]


def check_trimmable(caches: Sequence[Any]) -> None:
    """ValueError where a cache cannot go back (rotating ones): a rejected draft could not be undone."""
    for cache in caches:
        if not cache.is_trimmable() or type(cache).__name__ == "RotatingKVCache":
            raise ValueError(
                f"cache of type {type(cache).__name__} cannot be rewound, expected KVCache or QuantizedKVCache: "
                "speculative decoding needs to take rejected drafts back (leave the maximum cache size out)"
            )


@dataclass(frozen=True)
class Transaction:
    """A pass over `width` positions behind `start`, of which the caches may keep some."""

    caches: Sequence[Any]
    start: int
    width: int

    def commit(self, keep: int) -> None:
        """The first `keep` positions stay. ValueError outside 0..width."""
        if not 0 <= keep <= self.width:
            raise ValueError(f"commit: got {keep} positions, expected 0..{self.width}")
        trim_to(self.caches, self.start + keep)

    def abort(self) -> None:
        self.commit(0)


def begin(caches: Sequence[Any], width: int) -> Transaction:
    """Called before a pass over `width` positions. ValueError for one that is wider than can be taken back."""
    bound = any(isinstance(cache, BOUND) for cache in caches)
    if width < 1 or (bound and width > HELD):
        raise ValueError(f"begin: got a pass of {width} positions, expected 1..{HELD}")
    return Transaction(caches, max((cache.offset for cache in caches), default=0), width)


class Mark(NamedTuple):
    """The states of recurrent layers and of windows behind `length` positions; end: of a part of a prompt."""

    length: int
    states: list[Arrays]
    end: bool


class Marks:
    """States at some lengths of a text. Nothing is kept of bases without recurrent layers and windows; of windows, which are
    large, one state is."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self._held: list[Mark] = []

    def add(self, caches: Sequence[Any]) -> None:
        """Here the text can be taken up again: the ends of the newest parts of prompts are kept."""
        bound = [cache for cache in caches if isinstance(cache, BOUND)]
        if bound:
            states = [cache.state for cache in bound]
            mx.eval(states)  # else a copy keeps the buffer that it is of
            self._put(Mark(bound[0].offset, states, True), 1 if isinstance(bound[0], WindowCache) else MARKS)

    def pass_by(self, length: int, states: Sequence[Arrays]) -> None:
        """A text that is being written has come to `length`, and these are its recurrent states: one in APART is kept, and the
        newest two."""
        if states and length >= (self._held[-1].length if self._held else 0) + APART:
            self._put(Mark(length, list(states), False), MARKS)

    def _put(self, mark: Mark, most: int) -> None:
        ends = [held for held in self._held if held.end]
        ends = ends[max(0, len(ends) - most + mark.end) :]
        passed = [held for held in self._held if not held.end][-1:]
        self._held = [*sorted((*ends, *passed), key=lambda held: held.length), mark]

    def go_back(self, caches: Sequence[Any], length: int) -> int:
        """Puts the caches at the greatest length up to `length` that they can be at, and returns it: what lies between is to be
        read again."""
        self._held = [mark for mark in self._held if mark.length <= length]
        bound = [cache for cache in caches if isinstance(cache, BOUND)]
        at = min([length, *(cache.offset for cache in caches if not isinstance(cache, Stateless))])
        if reach_of(caches) > at:
            held = [(mark.length, mark.states) for mark in self._held if mark.length <= at]
            at, states = held[-1] if held else (0, [()] * len(bound))
            for cache, state in zip(bound, states, strict=True):
                cache.restore(at, state)
        trim_to(caches, at)
        return at
