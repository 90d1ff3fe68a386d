"""A Drafting that proposes at random, for tests of decoders that choose."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from tiny import VOCAB

from mtpd_mlx.speculative.drafting import Proposal
from mtpd_mlx.speculative.lookup import Lookup
from mtpd_mlx.speculative.round_costs import PLAIN, heads, lookup


class Schedule:
    """Heads in any number, lookup's drafts right and wrong, plain steps in runs. Checks that it is told the text."""

    def __init__(self, seed: int, most: int = 4, kinds: Sequence[str] = ("plain", "heads", "lookup")):
        self.rng, self.most, self.kinds, self.lookup = np.random.default_rng(seed), most, kinds, Lookup(8)
        self.plain, self.used, self.times = 0, Counter[str](), list[float]()

    def restart(self) -> None:
        self.lookup.restart()

    def begin(self, text: Sequence[int], token: int) -> None:
        self.lookup.begin(text, token)

    def align(self, text: Sequence[int], token: int) -> None:
        if not self.lookup.ends_with(len(text), token):
            self.lookup.begin(text, token)
        assert self.lookup._index.tokens == [*text, token]

    def propose(self, most: int) -> Proposal:
        assert most >= 0
        kind = self.kinds[int(self.rng.integers(len(self.kinds)))]
        if self.plain or kind == "plain":
            self.plain = self.plain - 1 if self.plain else int(self.rng.integers(4))
            return Proposal(PLAIN)
        count = min(most, int(self.rng.integers(1, self.most + 1)))
        if kind == "heads" or not count:
            return Proposal(heads(count))
        drafts = self.lookup.drafts(count) if self.rng.random() < 0.7 else self.rng.integers(0, VOCAB, count).tolist()
        return Proposal(lookup(count), tuple(drafts)) if drafts else Proposal(PLAIN)

    def observe(
        self, proposal: Proposal, emitted: Sequence[int], proposed: int | None = None, seconds: float | None = None
    ) -> None:
        assert proposed == proposal.count
        self.used[str(proposal.kind)] += 1
        self.times += [] if seconds is None else [seconds]
        for token in emitted:
            self.lookup.add(token)
