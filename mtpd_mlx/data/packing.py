"""Documents packed into rows of equal length, and the order of rows in an epoch (in memory and on disk alike).
Called by data/dataset.py and teacher_cache."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from mtpd_mlx.data.formats import Document


@dataclass(frozen=True)
class Batch:
    """tokens int32 [B, T]; segments int32 [B, T] (0: padding, 1, 2, ..: which document of the row); loss_mask bool [B, T]
    (True: this token counts when it is a target)."""

    tokens: np.ndarray
    segments: np.ndarray
    loss_mask: np.ndarray


def pack(documents: list[Document], length: int) -> Batch:
    """All rows [R, length]: documents end to end, cut at row ends. There is no attention barrier between documents;
    segments tell the losses where one ends."""
    ids = np.concatenate([d.ids for d in documents])
    masks = np.concatenate([d.loss_mask for d in documents])
    numbers = np.repeat(np.arange(1, len(documents) + 1, dtype=np.int32), [d.ids.size for d in documents])
    rows = -(-ids.size // length)
    padding = rows * length - ids.size
    tokens, loss_mask, segments = (
        np.pad(a, (0, padding)).reshape(rows, length) for a in (ids.astype(np.int32), masks, numbers)
    )
    first = segments[:, :1]
    return Batch(tokens, np.where(segments > 0, segments - first + 1, 0).astype(np.int32), loss_mask)


def pad(documents: list[Document], length: int) -> Batch:
    """All rows [R, length]: one document a row, cut or padded at its end."""
    shape = (len(documents), length)
    batch = Batch(np.zeros(shape, np.int32), np.zeros(shape, np.int32), np.zeros(shape, bool))
    for row, document in enumerate(documents):
        n = min(document.ids.size, length)
        batch.tokens[row, :n] = document.ids[:n]
        batch.segments[row, :n] = 1
        batch.loss_mask[row, :n] = document.loss_mask[:n]
    return batch


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
