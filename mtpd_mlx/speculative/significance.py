"""`Evidence`: whether sampled text has the main model's distribution, by one plain pass and no second sample.
Called by speculative/verify.py.

Given what came before, token x of a sound sampler has probability p(x). Two statistics over all tokens of all texts:
- top: how often the most probable token came, against how often it should (a normal deviate). Drafts favour it, so a rule
  that accepts or redraws wrongly moves this number.
- order: U = P(more probable tokens) + v p(x), v uniform, is uniform on [0, 1) (randomised probability integral transform,
  Dawid 1984); Kolmogorov-Smirnov measures how far the U are from it.
"""

import math
from dataclasses import dataclass, field

import numpy as np


@dataclass
class Evidence:
    """Collects tokens; p_value is small where they cannot come from the distributions they are said to come from."""

    seed: int = 0
    _deviations: list[float] = field(default_factory=list)
    _variances: list[float] = field(default_factory=list)
    _places: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._rng = np.random.default_rng(self.seed)

    def add(self, probabilities: np.ndarray, tokens: np.ndarray) -> None:
        """probabilities [n, V]: what each of tokens [n] should have been drawn from."""
        for p, token in zip(probabilities.astype(np.float64), tokens, strict=True):
            best = p.max()
            self._deviations.append(float(p[token] == best) - best * (p == best).sum())
            share = best * (p == best).sum()
            self._variances.append(share * (1 - share))
            self._places.append(float(p[p > p[token]].sum() + self._rng.random() * p[p == p[token]].sum()))

    @property
    def count(self) -> int:
        return len(self._places)

    @property
    def top_deviate(self) -> float:
        """Standard deviations by which the most probable token came too often; 0 where nothing was left to chance."""
        variance = sum(self._variances)
        return sum(self._deviations) / math.sqrt(variance) if variance > 1e-9 else 0.0

    @property
    def largest_gap(self) -> float:
        """Kolmogorov-Smirnov's D."""
        places, n = np.sort(self._places), self.count
        return float(max((np.arange(1, n + 1) / n - places).max(), (places - np.arange(n) / n).max()))

    @property
    def p_value(self) -> float:
        """Twice the smaller of the two p-values (Bonferroni); 1 without tokens."""
        if not self.count:
            return 1.0
        return min(1.0, 2 * min(math.erfc(abs(self.top_deviate) / math.sqrt(2)), kolmogorov(self.largest_gap, self.count)))


def kolmogorov(gap: float, count: int) -> float:
    """P(D >= gap) of Kolmogorov's limit distribution, with Stephens' correction for a finite count."""
    x = gap * (math.sqrt(count) + 0.12 + 0.11 / math.sqrt(count))
    if x < 0.3:
        return 1.0
    terms = (math.exp(-2 * k * k * x * x) * (1 if k % 2 else -1) for k in range(1, 101))
    return min(1.0, max(0.0, 2 * sum(terms)))
