"""`Logprobs`: the log-probabilities of a text's tokens, for servers.
Filled by constrained.py, read by serving/text.py.

They are the main head's own: log-softmax of its logits behind the text so far, before temperature, filters, penalties, biases
and masks. So they say what the model thinks, whatever was sampled and however.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Score(NamedTuple):
    """logprob: of `token`. top: the most probable tokens of its place and theirs, best first, lower id first among equals."""

    token: int
    logprob: float
    top: list[tuple[int, float]]


class Logprobs:
    """Of one text. count: how many of the most probable tokens are told for each place. of_prompt: the prompt's tokens are
    scored, too, which none of them may be cached for. `see` takes what the decoder emits, `take` gives what came since the
    last call. prompt: scores of its tokens, None for the first one."""

    def __init__(self, count: int = 0, of_prompt: bool = False):
        self.count, self.of_prompt = count, of_prompt
        self.prompt: list[Score | None] = []
        self._last: np.ndarray | None = None  # logits behind the prompt so far
        self._new: list[Score] = []

    def see(self, logits: np.ndarray, tokens: Sequence[int]) -> None:
        """logits [m, V]: of the main head before each of `tokens` [m]."""
        self._new += scores(logits, tokens, self.count)

    def see_prompt(self, logits: np.ndarray, tokens: Sequence[int]) -> None:
        """logits [m, V]: after each of the next `tokens` [m] of the prompt."""
        self.prompt += [None] if self._last is None else scores(self._last[None], tokens[:1], self.count)
        self.prompt += scores(logits[:-1], tokens[1:], self.count)
        self._last = logits[-1].copy()

    def begin(self) -> None:
        """Behind a prompt, or a piece of one: what was emitted so far is no part of the text."""
        self._new.clear()

    def take(self) -> list[Score]:
        new, self._new = self._new, []
        return new


def scores(logits: np.ndarray, tokens: Sequence[int], count: int) -> list[Score]:
    """logits [m, V], tokens [m]. Sums are in float64."""
    found = []
    for row, token in zip(logits, tokens, strict=True):
        most = row.max()
        total = float(most) + float(np.log(np.exp(row - most).sum(dtype=np.float64)))
        top = [(int(i), float(row[i]) - total) for i in best_of(row, count)]
        found.append(Score(int(token), float(row[token]) - total, top))
    return found


def best_of(row: np.ndarray, count: int) -> np.ndarray:
    """int [min(count, V)]: the places of the largest of row [V], largest first, the lower place first among equals."""
    count = min(count, row.size)
    if count == 0:
        return np.zeros(0, np.int64)
    least = np.partition(row, row.size - count)[row.size - count]
    places = np.flatnonzero(row >= least)
    ordered: np.ndarray = places[np.argsort(-row[places], kind="stable")][:count]
    return ordered
