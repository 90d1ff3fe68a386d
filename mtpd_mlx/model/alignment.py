"""Which token a head predicts where: shifts along a row, and which positions count (offsets: docs/architecture.md)."""

import numpy as np

from mtpd_mlx.data.packing import Batch
from mtpd_mlx.model.runtime import mx


def shift_left(x: mx.array, k: int) -> mx.array:
    """x [B, T, ...] -> y with y[:, i] = x[:, i + k] and zeros in the last k rows. k may exceed T."""
    k = min(k, x.shape[1])
    return mx.concatenate([x[:, k:], mx.zeros_like(x[:, :k])], axis=1)


def target_masks(batch: Batch, num_heads: int) -> np.ndarray:
    """Which positions count, bool [K + 1, B, T]; entry 0 is the main head.

    Head k counts at i when x_i .. x_{i+k+1} lie in one document (segments are contiguous, so equal ends suffice)
    and the target x_{i+k+1} is not masked (prompt, padding).
    """
    masks = np.zeros((num_heads + 1, *batch.tokens.shape), dtype=bool)
    for k in range(num_heads + 1):
        n = batch.tokens.shape[1] - (k + 1)
        if n > 0:
            here, there = batch.segments[:, :n], batch.segments[:, k + 1 :]
            masks[k, :, :n] = (here == there) & (here > 0) & batch.loss_mask[:, k + 1 :]
    return masks
