"""`Drafting`: the drafts of the next round, chosen (choice.py) over the text so far (lookup.py).
Called by both runtimes:

    drafting.begin(text, token)           # after a prefill: all of the text that is cached, and the token it goes on with
    while ...:
        proposal = drafting.propose(most)
        ... a round that verifies proposal.drafts, or proposal.count drafts of the heads, or a plain step ...
        drafting.observe(proposal, emitted, seconds=...)

A runtime calls `align` before it proposes where the caller may have rewound the text or named another token: it costs nothing
where nothing changed. `restart` says that another text begins. A runtime that starts round i + 1 before it has read round i
proposes before it observes: proposals may be observed late, in their order; the text that they are made for is then the one
observed so far.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from mtpd_mlx.speculative.choice import Chooser
from mtpd_mlx.speculative.lookup import Lookup
from mtpd_mlx.speculative.round_costs import PLAIN, Kind, heads


@dataclass(frozen=True)
class Proposal:
    """kind: what kind of round; drafts: the tokens to verify where lookup has them (else the heads make them)."""

    kind: Kind
    drafts: tuple[int, ...] = ()

    @property
    def count(self) -> int:
        """Drafts to verify; 0: a plain step."""
        return self.kind.num_drafts


class Drafting(Protocol):
    """The protocol that proposes what each round of one text verifies, and learns from its outcome."""

    def restart(self) -> None:
        """Another text begins."""
        ...

    def begin(self, text: Sequence[int], token: int) -> None:
        """The text is `text`, all of it, and goes on with `token`."""
        ...

    def align(self, text: Sequence[int], token: int) -> None:
        """As `begin`, where that is not already so by the length of the text and the token."""
        ...

    def propose(self, most: int) -> Proposal:
        """For the next round, which has room for `most` drafts."""
        ...

    def observe(
        self, proposal: Proposal, emitted: Sequence[int], proposed: int | None = None, seconds: float | None = None
    ) -> None:
        """The round of `proposal` emitted these tokens (the last one the main head's own) after verifying `proposed` drafts (as
        many as were proposed, if nothing is said), in so many seconds (None where they are not those of such a round)."""
        ...


class FixedDrafting:
    """Always so many drafts of the heads: no choice."""

    def __init__(self, count: int):
        self._proposal = Proposal(heads(count))

    def restart(self) -> None:
        pass

    def begin(self, text: Sequence[int], token: int) -> None:
        pass

    def align(self, text: Sequence[int], token: int) -> None:
        pass

    def propose(self, most: int) -> Proposal:
        return self._proposal if self._proposal.count <= most else Proposal(PLAIN)

    def observe(
        self, proposal: Proposal, emitted: Sequence[int], proposed: int | None = None, seconds: float | None = None
    ) -> None:
        pass


class ChosenDrafting:
    """The choice of `chooser`, with the drafts of `lookup` where there is one. `timed`: what rounds take corrects their costs.
    A sampled text depends on what was drafted, so one that must be repeatable is not timed."""

    def __init__(self, chooser: Chooser, lookup: Lookup | None = None, timed: bool = True):
        self.chooser, self.lookup, self._timed = chooser, lookup, timed

    def restart(self) -> None:
        self.chooser.new_text()
        if self.lookup is not None:
            self.lookup.restart()

    def begin(self, text: Sequence[int], token: int) -> None:
        if self.lookup is not None:
            self.lookup.begin(text, token)

    def align(self, text: Sequence[int], token: int) -> None:
        if self.lookup is not None and not self.lookup.ends_with(len(text), token):
            self.lookup.begin(text, token)

    def propose(self, most: int) -> Proposal:
        chain = [] if self.lookup is None else self.lookup.chain()
        kind = self.chooser.choose(chain[:most])
        if kind.num_drafts > most:
            return Proposal(PLAIN)
        if kind.source == "lookup":
            assert self.lookup is not None
            return Proposal(kind, tuple(self.lookup.drafts(kind.num_drafts)))
        return Proposal(kind)

    def observe(
        self, proposal: Proposal, emitted: Sequence[int], proposed: int | None = None, seconds: float | None = None
    ) -> None:
        self.chooser.observe(proposal.kind, len(emitted) - 1, proposed, seconds if self._timed else None)
        if self.lookup is not None:
            for token in emitted:
                self.lookup.add(token)
