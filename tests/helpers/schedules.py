"""A Drafting that chooses at random, for tests that any choice gives the same text."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from mtpd_onnx.layouts import draft_counts

from helpers.decode import decoded
from mtpd_mlx.speculative.drafting import Proposal
from mtpd_mlx.speculative.protocol import Backend
from mtpd_mlx.speculative.round_costs import PLAIN, heads, lookup


class Scheduled:
    """Every round another kind: plain, 1..most_heads drafts of the heads, or looked up ones.

    These are what `truth` says comes behind a text, up to a wrong one, or random tokens below `vocab`. `seen`: (source, drafts
    verified, accepted) of each round.
    """

    def __init__(self, seed: int, most_heads: int, vocab: int, truth: Callable[[list[int], int], list[int]] | None = None):
        self._rng, self._most, self._vocab, self._truth = np.random.default_rng(seed), most_heads, vocab, truth
        self._text: list[int] = []
        self.seen: list[tuple[str, int, int]] = []

    def restart(self) -> None:
        self._text = []

    def begin(self, text: Sequence[int], token: int) -> None:
        self._text = [*text, token]

    def align(self, text: Sequence[int], token: int) -> None:
        self._text = [*text, token]

    def propose(self, most: int) -> Proposal:
        rng = self._rng
        count = int(rng.integers(1, 10))
        if rng.random() < 0.3:
            return Proposal(PLAIN)
        if self._most and rng.random() < 0.6:
            count = min(count, self._most, most)
            return Proposal(heads(count) if count else PLAIN)
        if (count := min(count, most)) == 0:
            return Proposal(PLAIN)
        drafts = rng.integers(0, self._vocab, count).tolist()
        if self._truth is not None:
            right = int(rng.integers(0, count + 1))
            drafts[:right] = self._truth(self._text, count)[:right]
        return Proposal(lookup(count), tuple(drafts))

    def observe(
        self, proposal: Proposal, emitted: Sequence[int], proposed: int | None = None, seconds: float | None = None
    ) -> None:
        self._text += emitted
        drafts = proposal.count if proposed is None else proposed
        self.seen.append((proposal.kind.source, drafts, len(emitted) - 1))


class OnDevice(Scheduled):
    """Of the kinds that a device has runs for."""

    def propose(self, most: int) -> Proposal:
        proposal = super().propose(most)
        if proposal.kind.source == "lookup":
            count = max((n for n in (3, 7, 15) if n <= proposal.count), default=0)
            return Proposal(lookup(count), proposal.drafts[:count]) if count else Proposal(PLAIN)
        count = max((n for n in draft_counts(self._most) if n <= proposal.count), default=0)
        return Proposal(heads(count))


def truth_of(expected: Mapping[tuple[int, ...], list[int]]) -> Callable[[list[int], int], list[int]]:
    """What comes behind the beginning of a text; `expected`: texts by their prompts."""

    def truth(text: list[int], length: int) -> list[int]:
        for prompt, following in expected.items():
            whole = [*prompt, *following]
            if text == whole[: len(text)]:
                return [*whole[len(text) : len(text) + length], *[0] * length][:length]
        raise AssertionError(f"{text}: not the beginning of an expected text")

    return truth


def check_texts(backend: Backend, drafting: Scheduled, expected: Mapping[tuple[int, ...], list[int]], lookups: int) -> None:
    """Each text three times, whatever is drafted; in all of them rounds of every kind, and looked up drafts of which `lookups`
    different numbers at least were accepted."""
    for _ in range(3):
        for prompt, following in expected.items():
            assert decoded(backend, list(prompt), len(following))[0] == following
    assert {source for source, _, _ in drafting.seen} == {"plain", "heads", "lookup"}
    assert len({accepted for source, _, accepted in drafting.seen if source == "lookup"}) >= lookups
