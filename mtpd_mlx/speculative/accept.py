"""Acceptance rules."""

from collections.abc import Sequence


def accept_greedy(predicted: Sequence[int], drafts: Sequence[int]) -> int:
    """Number of leading drafts equal to the main head's own choice.

    predicted [m+1]: the main head's argmax after x_P, d_1, .., d_m; predicted[j] is its token in the place of drafts[j]
    (drafts [m]), and the last one follows a fully accepted run. ValueError where the lengths do not fit.
    """
    if len(predicted) != len(drafts) + 1:
        raise ValueError(f"predicted: got {len(predicted)} tokens for {len(drafts)} drafts, expected {len(drafts) + 1}")
    for accepted, draft in enumerate(drafts):
        if predicted[accepted] != draft:
            return accepted
    return len(drafts)
