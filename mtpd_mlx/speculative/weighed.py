"""`Weighed`: a Constraint that moves logits: OpenAI's logit_bias, presence_penalty and frequency_penalty.
Called by serving/forms/weights.py.

What is added to the logit of token v behind the answer's tokens y_1..y_n, with c_v the number of v among them:

    bias_v - presence [c_v > 0] - frequency c_v

The answer alone is counted, not the prompt. The main head's rows and the drafts get the same, each at its own place, so text
with drafts is that without (constrained.py).
"""

from collections import Counter
from collections.abc import Collection, Mapping

import numpy as np

from mtpd_mlx.speculative.constrained import Constraint


class Weighed:
    """`inner`: a grammar that holds besides; without one every token of `vocab_size` may come and `ends` end the text."""

    def __init__(
        self,
        vocab_size: int,
        ends: Collection[int],
        bias: Mapping[int, float],
        presence: float = 0.0,
        frequency: float = 0.0,
        inner: Constraint | None = None,
    ):
        self._inner, self._presence, self._frequency = inner, presence, frequency
        self.ends = ends if inner is None else inner.ends
        self._bias: np.ndarray = np.zeros(vocab_size, np.float32)
        for token, value in bias.items():
            self._bias[token] = value
        self._taken: list[int] = []
        self._counts = Counter[int]()

    def allowed(self) -> np.ndarray:
        return np.ones(self._bias.size, bool) if self._inner is None else self._inner.allowed()

    def weights(self) -> np.ndarray:
        """float32 [V]: what is added to the logits of the next token."""
        weights = self._bias.copy()
        for token, count in self._counts.items():
            weights[token] -= self._presence + self._frequency * count
        return weights

    def forced(self) -> list[int]:
        return [] if self._inner is None else self._inner.forced()

    def take(self, token: int) -> bool:
        if self._inner is not None and not self._inner.take(token):
            return False
        self._taken.append(token)
        self._counts[token] += 1
        return True

    def back(self, count: int) -> None:
        if self._inner is not None:
            self._inner.back(count)
        for _ in range(count):
            token = self._taken.pop()
            self._counts[token] -= 1
            if not self._counts[token]:
                del self._counts[token]
