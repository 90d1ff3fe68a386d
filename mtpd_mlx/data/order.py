"""The order of rows in an epoch, for data sets that hold their rows in memory and for those that read them from disk."""

import numpy as np


def epoch_order(num_rows: int, seed: int, epoch: int) -> np.ndarray:
    """A permutation of range(num_rows), int64 [num_rows]: a pure function of its arguments."""
    return np.random.default_rng([seed, epoch]).permutation(num_rows)
