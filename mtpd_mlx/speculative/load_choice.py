"""`LoadChoice`: the number of drafts of every text in a round, by the number of texts.
Called by both runtimes' batches, for the server's scheduler.

The choice is that of choice.py, made once for each class of sizes (2, 3..4, 5..8, 9..16, ..): a round of B texts that verifies
k drafts each costs so many plain rounds of B texts, and brings E_k tokens a text. The more texts, the dearer their drafts,
since a pass over more rows takes longer once it is bound by arithmetic; so large batches come to plain rounds by themselves.
Acceptance is counted over all texts.
"""

from collections.abc import Callable, Mapping, Sequence

from mtpd_mlx.speculative.choice import DEFAULT_AR, FADING, Chooser, DepthAcceptance
from mtpd_mlx.speculative.round_costs import PLAIN, Kind, RoundCosts, heads


class LoadChoice:
    """`costs(rows)`: what rounds of so many rows may cost, by kind (Batch.costs). `known(rows)`: what they did cost when it was
    measured, None where it was not: then nothing has to be learned first."""

    def __init__(
        self,
        costs: Callable[[int], Mapping[Kind, float]],
        prior: Sequence[float] = DEFAULT_AR,
        known: Callable[[int], Mapping[Kind, float] | None] = lambda rows: None,
    ):
        self._costs, self._prior, self._known = costs, prior, known
        self._choosers: dict[int, Chooser] = {}
        self._acceptance: DepthAcceptance | None = None

    def choose(self, rows: int) -> int:
        """Drafts of the heads for each of `rows` texts."""
        return self._chooser(rows).choose().num_drafts

    def observe(
        self, rows: int, count: int, accepted: Sequence[int], proposed: Sequence[int], seconds: float | None = None
    ) -> None:
        """A round of `rows` texts, for which `count` was chosen, took so many seconds (None: not those of such a round);
        `accepted` and `proposed`: drafts of the heads of those texts that left the number to this choice."""
        if accepted:
            chooser = self._chooser(rows)
            assert self._acceptance is not None
            self._acceptance.fading = FADING ** (1 / len(accepted))  # a round of many texts ages what is known by one round
            chooser.observe_rows(heads(count), accepted, proposed, seconds)

    def _chooser(self, rows: int) -> Chooser:
        size = size_class(rows)
        if size not in self._choosers:
            table = {kind: cost for kind, cost in self._costs(size).items() if kind == PLAIN or kind.source == "heads"}
            chooser = Chooser(self._round_costs(size, table), [kind.num_drafts for kind in table], self._prior)
            if self._acceptance is None:
                self._acceptance = chooser.acceptance
            chooser.acceptance = self._acceptance
            self._choosers[size] = chooser
        return self._choosers[size]

    def _round_costs(self, size: int, guess: Mapping[Kind, float]) -> RoundCosts:
        known = self._known(size) or {}
        if not guess.keys() <= known.keys():
            return RoundCosts(guess)
        return RoundCosts({kind: known[kind] for kind in guess}, measured=True)

    def learned(self) -> dict[int, tuple[int, dict[Kind, float]]]:
        """By class of sizes: how many rounds were timed, and what each kind is believed to cost."""
        return {size: (chooser.timed, chooser.costs.table()) for size, chooser in self._choosers.items()}


def size_class(rows: int) -> int:
    """The smallest power of two that is no less."""
    return 1 << (rows - 1).bit_length()


def costs_of_rows(rows: int, counts: Sequence[int], row: float, head: float) -> dict[Kind, float]:
    """A guess for Batch.costs. row: of a pass over one token, what every further row of the pass costs; head: what a head costs
    for one text. A head's pass grows with the texts as the main one does."""

    def size(tokens: int) -> float:
        return 1 + row * (tokens - 1)

    plain = size(rows)
    times = {heads(k): size(rows * (k + 1)) + k * head * plain for k in (0, *counts)}
    return {kind: seconds / plain for kind, seconds in times.items()}
