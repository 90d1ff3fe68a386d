"""`count`, `describe`, `check`: rows, tokens and targets of a data set; one without targets is refused.
Called by data/dataset.py, train/setup.py and teacher_cache."""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass

from mtpd_mlx.data.packing import Batch, target_masks

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Counts:
    """tokens: without padding; targets: those that the main head learns to predict; drafted: the same of head 1; cut: rows
    whose document is longer than they are; empty: rows without a target."""

    rows: int
    tokens: int
    targets: int
    drafted: int
    cut: int
    empty: int


def count(batch: Batch, cut: int) -> Counts:
    """Counts of a batch; `cut`: rows that were cut at the row length."""
    masks = target_masks(batch, 1)
    per_row = masks[0].sum(axis=1)
    tokens = int((batch.segments > 0).sum())
    return Counts(len(batch.tokens), tokens, int(per_row.sum()), int(masks[1].sum()), cut, int((per_row == 0).sum()))


def total(parts: Iterable[Counts]) -> Counts:
    """Sums of the counts of several sources."""
    return Counts(*map(sum, zip(*map(astuple, parts), strict=True)))


def say(splits: Mapping[str, Counts]) -> None:
    """One line, for the user."""
    logger.info("data: %s", "; ".join(describe(name, counts) for name, counts in splits.items()))


def describe(name: str, c: Counts) -> str:
    return (
        f"{name} {c.rows:,} rows, {c.tokens:,} tokens, {c.targets:,} targets, {c.cut:,} rows cut, {c.empty:,} without targets"
    )


def check(splits: Mapping[str, Counts], named: str, length: int, mask_prompt: bool) -> None:
    """ValueError where a split has nothing that heads could be trained or chosen by."""
    for name, c in splits.items():
        if c.drafted == 0:
            why = f"{'prompts are masked, ' if mask_prompt else ''}{c.cut:,} of them are cut at {length} tokens"
            hint = "a longer --max-seq-length" + (", or leave out --mask-prompt" if mask_prompt else ", or longer texts")
            raise ValueError(f"data {named}: no targets for heads in the {c.rows:,} {name} rows ({why}); try {hint}")
