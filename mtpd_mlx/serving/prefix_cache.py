"""`PrefixCache`: texts that have lost their rows, found by their tokens. A request goes on from the best match.
Called by serving/scheduler.py, which fills it and asks it before a prefill.

The scheduler puts a text here when its row is given to another, and looks here before it prefills. The least recently used go
first where there are more bytes than the limit.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mtpd_mlx.speculative.saved import Saved


@dataclass(eq=False)
class _Entry:
    tokens: np.ndarray
    saved: Saved


class PrefixCache:
    """`limit`: bytes of all texts. hits, misses: of requests that looked; saved_tokens: that were not prefilled again."""

    def __init__(self, limit: int):
        self.limit, self.hits, self.misses, self.saved_tokens = limit, 0, 0, 0
        self._entries: list[_Entry] = []  # the last used first

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def nbytes(self) -> int:
        return sum(entry.saved.nbytes for entry in self._entries)

    def put(self, saved: Saved) -> None:
        """Texts that it begins with are of no more use. One that is larger than the limit is not kept."""
        tokens = np.array(saved.tokens, np.int64)
        same = [e for e in self._entries if e.saved.kind == saved.kind]
        for entry in same:
            common = _common(entry.tokens, tokens)
            if common == len(tokens):  # it is there already
                return
            if common == len(entry.tokens):
                self._entries.remove(entry)
        if saved.nbytes <= self.limit:
            self._entries.insert(0, _Entry(tokens, saved))
        while self.nbytes > self.limit:
            self._entries.pop()

    def best(self, prompt: Sequence[int]) -> tuple[Saved, int] | None:
        """The text that has the longest beginning in common with `prompt`, and how long that is; None: there is none. At least
        one token of the prompt is left over."""
        wanted = np.array(prompt, np.int64)
        found = [(_common(entry.tokens, wanted), entry) for entry in self._entries]
        common, entry = max(found, key=lambda pair: pair[0], default=(0, None))
        common = min(common, len(prompt) - 1)
        if entry is None or common < 1:
            return None
        self._entries.remove(entry)
        self._entries.insert(0, entry)
        return entry.saved, common

    def looked(self, tokens: int) -> None:
        """A request took so many tokens from here; 0: none."""
        self.hits += tokens > 0
        self.misses += tokens == 0
        self.saved_tokens += tokens

    def clear(self) -> None:
        self._entries.clear()


def _common(a: np.ndarray, b: np.ndarray) -> int:
    """Length of the common beginning."""
    size = min(len(a), len(b))
    differ = np.flatnonzero(a[:size] != b[:size])
    return int(differ[0]) if differ.size else size
