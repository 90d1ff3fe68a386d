"""`MaskedRule`: the rules of sampling.py under a mask for every row, in numpy.
Called by speculative/constrained.py.

A mask is bool [V], or float32 [V] that is added to the logits (-inf: may not come). Masks come first: the repetition penalty,
top-p, min-p, XTC, top-k and temperature then work on the allowed tokens alone.
"""

from collections.abc import Sequence

import numpy as np

from mtpd_mlx.speculative.rounds import accept_greedy
from mtpd_mlx.speculative.sampling import (
    DRAFT,
    KINDS,
    REPLACE,
    Sampling,
    accept_sampled,
    draw,
    penalise,
    probabilities,
    uniforms,
)

EXCLUDE = KINDS  # the column of the table that decides where XTC applies
LEAST = -1e29  # logits below are those of tokens that heads have no logit for
REACH = (
    25.0  # tokens that are e^-25 times as probable as the best one are never drawn: all of them weigh less than float32 tells
)


class MaskedRule:
    """Shapes: V vocabulary, m drafts. `positions`: of the longest text. greedy: nothing is drawn."""

    def __init__(self, options: Sampling, positions: int, special: Sequence[int] = ()):
        self.options, self.greedy, self._special = options, options.greedy, special
        self._positions, self._rng = positions, np.random.default_rng(options.seed)
        self._table = np.zeros((0, KINDS + 1), np.float32)

    def begin(self) -> None:
        """Another text: other random numbers, [positions, KINDS + 1]."""
        if not self.greedy:
            numbers = [uniforms(self._positions, self._rng) for _ in range(2)]
            self._table = np.concatenate([numbers[0], numbers[1][:, :1]], axis=1)

    def first(self, logits: np.ndarray, mask: np.ndarray, before: Sequence[int]) -> int:
        """logits, mask [V] -> the token behind `before`."""
        if self.greedy:
            return best(logits, mask)
        return draw(self._weights(logits[None], [mask], before)[0], self._table[len(before), REPLACE])

    def draft(self, logits: np.ndarray, mask: np.ndarray, before: Sequence[int]) -> tuple[int, np.ndarray | None] | None:
        """A head's logits [V] -> (draft, what it was drawn from [V]); None where the head knows no allowed token."""
        if not (masked(logits, mask).max() > LEAST):
            return None
        if self.greedy:
            return best(logits, mask), None
        q = self._weights(logits[None], [mask], before)[0]
        return draw(q, self._table[len(before), DRAFT]), q

    def accept(
        self,
        logits: np.ndarray,
        masks: Sequence[np.ndarray],
        drafts: Sequence[int],
        probs: Sequence[np.ndarray | None],
        before: Sequence[int],
    ) -> tuple[int, int]:
        """(accepted drafts, the token after them): logits and masks [m+1, V] after `before`, d_1..d_m."""
        if self.greedy:
            found = [best(row, mask) for row, mask in zip(logits, masks, strict=True)]
            accepted = accept_greedy(found, drafts)
            return accepted, found[accepted]
        p = self._weights(logits, masks, [*before, *drafts])
        q = np.stack([each for each in probs if each is not None]) if drafts else np.zeros((0, logits.shape[1]), np.float32)
        return accept_sampled(p, q, drafts, self._table[len(before) : len(before) + len(drafts) + 1])

    def _weights(self, logits: np.ndarray, masks: Sequence[np.ndarray], text: Sequence[int]) -> np.ndarray:
        """float32 [n, V]: what the tokens behind the last n beginnings of `text` are drawn from."""
        n, size = len(logits), self.options.repetition_context_size
        first = len(text) - n + 1  # tokens before the first row's
        padded = [text[0]] * size + list(text[max(0, first - size) :])
        start = len(padded) - n + 1
        out: np.ndarray = np.zeros(logits.shape, np.float32)
        for i, (row, mask) in enumerate(zip(logits, masks, strict=True)):
            context = np.array(padded[start + i - size : start + i])
            out[i] = self._row(row, mask, context, first + i)
        return out

    def _row(self, logits: np.ndarray, mask: np.ndarray, context: np.ndarray, position: int) -> np.ndarray:
        """The rule over those of the allowed tokens alone that can matter: sorting a whole vocabulary takes milliseconds."""
        options = self.options
        if options.repetition_penalty != 1:
            logits = penalise(logits[None], context[None], options.repetition_penalty)[0]
        row = masked(logits, mask)
        ids = np.flatnonzero(row >= row.max() - REACH * max(1.0, options.temp))
        excluded, special = None, list[int]()
        if options.xtc_probability:
            excluded = self._table[position : position + 1, EXCLUDE] < options.xtc_probability
            special = np.flatnonzero(np.isin(ids, list(self._special))).tolist()
        out: np.ndarray = np.zeros(logits.shape, np.float32)
        out[ids] = probabilities(row[None, ids], options, None, excluded, special)[0]
        return out


def best(logits: np.ndarray, mask: np.ndarray) -> int:
    """The first of the allowed tokens with the largest logit."""
    return int(masked(logits, mask).argmax())


def masked(logits: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """float32 [V]."""
    return np.where(mask, logits, np.float32(-np.inf)) if mask.dtype == bool else logits + mask


def one_hot(token: int, size: int) -> np.ndarray:
    """float32 [size]: what a draft that is certain was drawn from."""
    out: np.ndarray = np.zeros(size, np.float32)
    out[token] = 1
    return out
