"""`Chooser`: the number of drafts that the next round verifies, and their origin.
Called by speculative/drafting.py, for both runtimes.

A round of kind i takes cost_i plain steps (round_costs.py) and brings E_i = 1 + sum_j P(drafts 1..j are right) tokens. The kind
with the largest E_i / cost_i is chosen; plain steps (E = cost = 1) where none is above 1. The probabilities are those of this
text: of heads by depth, from the rounds so far (DepthAcceptance); of lookup, from its matches (lookup.py).

Two accounts, both in plain steps, keep the price of being wrong small:

- the ledger: what rounds have lost against plain steps, cost - emitted tokens each, may exceed ALLOWED of the time by LEDGER
  steps at most; else plain steps follow, until it is even. Whatever the text does, it takes (1 + ALLOWED) of the plain time at
  most, plus LEDGER and one round. Gains pay for later losses, up to LEDGER_MOST.
- the credit: EXPLORING of the time goes into rounds of another kind than the best, where that kind could be better for all that
  is known. So plain text that becomes predictable is found again, and a better number of drafts too.

Costs that were only guessed are compared at once: while the cost of the best kind is less certain than UNSURE, plain steps
alternate with its rounds.

Nothing is drawn at random: the same text and times make the same choices.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from mtpd_mlx.speculative.round_costs import PLAIN, Kind, RoundCosts, heads

ALLOWED, LEDGER, LEDGER_MOST = 0.005, 1.5, 24.0
EXPLORING, CREDIT, CREDIT_MOST = 0.005, 1.0, 3.0
UNSURE, DOUBTFUL = (
    0.12,
    0.05,
)  # standard deviations of a cost, from which on it is compared with plain steps: at once, on credit
APART = 3  # rounds between two that explore, at least
STAY = 0.02  # heads go on with the number of drafts they have unless another gains more than this
LEAST_GAIN = 0.01  # over plain steps
LOOKUP_GAIN = 0.1  # over heads, which draft better than usual, too, where a text repeats itself

DEFAULT_AR = (0.62, 0.60, 0.58, 0.57)  # acceptance by depth where the heads say nothing of their own; the last one goes on
FADING = 0.95  # what a round weighs after the next one
DEPTH_COUNT, TEXT_COUNT = 5.0, 3.0  # what the text as a whole says about a depth, in rounds; what the prior says, in failures


class DepthAcceptance:
    """AR_k of this text, k = 1..K: P(draft k accepted | drafts 1..k-1 accepted). Counts fade, so that it follows the text.

    Depths share what a text is like: with F failures where the prior expected F_0, every depth's failures are taken to be
    (F + c) / (F_0 + c) times the prior's, and that is what the depth's own counts are added to.
    """

    def __init__(self, depths: int, prior: Sequence[float] = DEFAULT_AR, fading: float = FADING):
        self.fading = fading
        known = list(prior) or list(DEFAULT_AR)
        self.prior = [min(0.98, max(0.02, known[min(k, len(known) - 1)])) for k in range(depths)]
        self._right, self._seen = [0.0] * depths, [0.0] * depths
        self._failed = self._expected = 0.0

    def saw(self, accepted: int, proposed: int) -> None:
        self._failed *= self.fading
        self._expected *= self.fading
        for k in range(min(accepted + 1, proposed)):
            self._right[k] = self._right[k] * self.fading + (k < accepted)
            self._seen[k] = self._seen[k] * self.fading + 1
            self._expected += 1 - self.prior[k]
        self._failed += accepted < proposed

    def rates(self) -> list[float]:
        worse = (self._failed + TEXT_COUNT) / (self._expected + TEXT_COUNT)
        text = [1 - min(0.99, (1 - p) * worse) for p in self.prior]
        return [(r + DEPTH_COUNT * p) / (n + DEPTH_COUNT) for r, n, p in zip(self._right, self._seen, text, strict=True)]

    def spreads(self) -> list[float]:
        """Standard deviation of each rate."""
        counts = (n + DEPTH_COUNT for n in self._seen)
        return [math.sqrt(p * (1 - p) / n) for p, n in zip(self.rates(), counts, strict=True)]

    def new_text(self) -> None:
        """Another text may be of another kind: what is known counts half."""
        self._right, self._seen = [r / 2 for r in self._right], [n / 2 for n in self._seen]
        self._failed, self._expected = self._failed / 2, self._expected / 2


def tokens_of(rates: Sequence[float], count: int) -> float:
    """1 + sum_{j <= count} prod_{i <= j} rates[i]: the tokens of a round that verifies `count` drafts."""
    total = all_right = 1.0
    for p in rates[:count]:
        all_right *= p
        total += all_right
    return total


@dataclass
class Chooser:
    """`head_counts`: the numbers of heads' drafts to choose among (empty: there are no heads). Kinds that `costs` does not
    know are never chosen."""

    costs: RoundCosts
    head_counts: Sequence[int] = ()
    prior: Sequence[float] = DEFAULT_AR
    acceptance: DepthAcceptance = field(init=False)
    ledger: float = field(init=False, default=LEDGER)
    credit: float = field(init=False, default=CREDIT)

    def __post_init__(self) -> None:
        self._heads = [heads(k) for k in sorted(set(self.head_counts)) if k and heads(k) in self.costs]
        self._lookups = sorted(kind for kind in self.costs.kinds if kind.source == "lookup")
        self.acceptance = DepthAcceptance(max((k.num_drafts for k in self._heads), default=0), self.prior)
        self._current = PLAIN  # what heads' rounds and plain steps go on with
        self._trial: Kind | None = None  # the kind that was chosen to explore, until its round is over
        self._waited = 0  # rounds that were observed since it was chosen: the one before it may be, and then it is forgotten
        self._since = 0  # rounds since one that explored
        self._times: dict[Kind, int] = {}  # how many times of rounds were observed

    def choose(self, chain: Sequence[float] = ()) -> Kind:
        """The kind of the next round. `chain` [L]: P(lookup's drafts 1..j are right), if there are any."""
        rates = self.acceptance.rates() if self._heads else []
        values = {PLAIN: 1.0} | {kind: tokens_of(rates, kind.num_drafts) / self.costs.cost(kind) for kind in self._heads}
        best = max(values, key=lambda kind: values[kind])
        if (
            best != self._current
            and values[best] <= (1 + (STAY if self._current.num_drafts else LEAST_GAIN)) * values[self._current]
        ):
            best = self._current
        if best.num_drafts and values[best] < 1 + LEAST_GAIN and best != PLAIN:
            best = PLAIN
        self._current = best
        value = values[best]
        margin = 1 + LOOKUP_GAIN * (best != PLAIN)
        for kind in self._lookups:
            v = (1 + sum(chain[: kind.num_drafts])) / self.costs.cost(kind) if kind.num_drafts <= len(chain) else 0.0
            if v > value * (margin if best.source != "lookup" else 1 + STAY):
                best, value = kind, v
        if self._trial is None and best == self._current:
            self._trial, self._waited = self._worth_a_try(best, value, values), 0
            if self._trial is not None:
                return self._trial
        if self._allowed(best):
            return best
        return max((k for k in values if self._allowed(k)), key=lambda kind: values[kind])

    def _worth_a_try(self, best: Kind, value: float, values: dict[Kind, float]) -> Kind | None:
        """Another kind than `best`, if there is credit for it. Instead of plain steps that is the most promising number of
        drafts, since no round tells meanwhile what has become of the text; else one that could be better than `best` for all
        that is known."""
        doubt = self.costs.spread(best)
        if doubt > UNSURE and self._times.get(PLAIN, 0) < self._times.get(best, 0):
            return PLAIN
        if self._since < APART:
            return None
        affordable = [k for k in values if k != best and self._price(k, value, values) <= self.credit and self._allowed(k)]
        if best != PLAIN:
            affordable = [k for k in affordable if self._hope(k, best) > value or (k == PLAIN and doubt > DOUBTFUL)]
        return max(affordable, key=lambda kind: values[kind], default=None)

    def _hope(self, kind: Kind, best: Kind) -> float:
        """Tokens per plain step, one standard deviation better than expected."""
        rates = [min(0.99, p + s) for p, s in zip(self.acceptance.rates(), self.acceptance.spreads(), strict=True)]
        less = math.exp(-self.costs.spread(kind) - self.costs.spread(best))
        return tokens_of(rates, kind.num_drafts) / (self.costs.cost(kind) * less)

    def _allowed(self, kind: Kind) -> bool:
        """The ledger can pay for a round of this kind that brings one token."""
        return kind == PLAIN or self.ledger >= self.costs.cost(kind) - 1

    def _price(self, kind: Kind, value: float, values: dict[Kind, float]) -> float:
        """Plain steps that a round of this kind is expected to take longer than its tokens take at the best rate."""
        return max(0.0, self.costs.cost(kind) * (1 - values[kind] / value))

    def observe(self, kind: Kind, accepted: int, proposed: int | None = None, seconds: float | None = None) -> None:
        """What became of a round of this kind: `proposed` drafts verified (the kind's count, if nothing else is said; 0: the
        runtime could not draft and took a plain step), in so many seconds (None: not known, or not those of such a round)."""
        proposed = kind.num_drafts if proposed is None else proposed
        if kind.num_drafts and not proposed:
            kind = PLAIN
        if seconds is not None:
            self.costs.observe(kind, seconds)
            self._times[kind] = self._times.get(kind, 0) + 1
        cost = self.costs.cost(kind)
        self._settle(kind, accepted, cost)
        if kind.source == "heads":
            self.acceptance.saw(accepted, proposed)

    def observe_rows(self, kind: Kind, accepted: Sequence[int], proposed: Sequence[int], seconds: float | None = None) -> None:
        """As `observe`, of a round of several texts whose costs `costs` are: accepted and verified drafts of each text."""
        if seconds is not None:
            self.costs.observe(kind, seconds)
            self._times[kind] = self._times.get(kind, 0) + 1
        self._settle(kind, sum(accepted) / len(accepted), self.costs.cost(kind))
        for right, verified in zip(accepted, proposed, strict=True):
            self.acceptance.saw(right, verified)

    def _settle(self, kind: Kind, accepted: float, cost: float) -> None:
        """Enters a round in both accounts."""
        self.ledger = min(LEDGER_MOST, self.ledger + ALLOWED * cost + accepted + 1 - cost)
        self.credit = min(CREDIT_MOST, self.credit + EXPLORING * cost)
        self._since += 1
        if kind == self._trial:
            rates = self.acceptance.rates() if self._heads else []
            value = max(1.0, tokens_of(rates, self._current.num_drafts) / self.costs.cost(self._current))
            self.credit -= max(0.0, cost - tokens_of(rates, kind.num_drafts) / value)
            self._since = 0
            self._trial = None
        elif self._waited:
            self._trial = None
        self._waited += 1

    @property
    def timed(self) -> int:
        """Rounds whose times were observed."""
        return sum(self._times.values())

    def new_text(self) -> None:
        """Another text begins."""
        self.acceptance.new_text()
