"""The order of rows in an epoch, for data sets that hold their rows in memory and for those that read them from disk."""

from collections.abc import Iterable

import numpy as np


def add_counts(parts: Iterable[np.ndarray]) -> np.ndarray:
    """The sum of count vectors of different lengths."""
    total = np.zeros(0, np.int64)
    for counts in parts:
        longer, shorter = (total, counts) if total.size >= counts.size else (counts, total)
        total = longer.copy()
        total[: shorter.size] += shorter
    return total


def epoch_order(num_rows: int, seed: int, epoch: int) -> np.ndarray:
    """A permutation of range(num_rows), int64 [num_rows]: a pure function of its arguments."""
    return np.random.default_rng([seed, epoch]).permutation(num_rows)
