"""Acceptance rules."""

from collections.abc import Sequence


def accept_greedy(predicted: Sequence[int], drafts: Sequence[int]) -> int:
    """Number of leading drafts equal to the main head's own choice; predicted[j] is its token in the place of drafts[j]."""
    accepted = 0
    for own, draft in zip(predicted, drafts, strict=False):
        if own != draft:
            break
        accepted += 1
    return accepted
