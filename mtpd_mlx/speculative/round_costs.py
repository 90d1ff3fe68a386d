"""`RoundCosts`: the cost of each kind of round in plain steps: a table, corrected by the times that rounds take.
Called by speculative/choice.py and by both runtimes.

    log t_i = s + log table_i + c_i + noise

t_i: seconds of a round of kind i. s: what all kinds have in common (the machine, other programs on it, a longer context). c_i:
what the table has wrong about kind i. s wanders, c_i hardly: so a slow minute is no reason to change the kind of round, and a
table that was guessed is learned from few rounds. Both are estimated by a Kalman filter; a time too far from what was expected
counts as if it were OUTLIER deviations away. Arithmetic of Python alone: an observation takes some microseconds.
"""

import math
from collections.abc import Mapping
from contextlib import suppress
from itertools import pairwise
from typing import NamedTuple

NOISE = 0.18  # of one time: standard deviation of its logarithm
WANDER, DRIFT = 0.05, 0.004  # the same of s and of c_i, from one round to the next
GUESSED, MEASURED = 0.25, 0.05  # of c_i at first
IN_A_MOMENT = 0.1  # the same where it was measured in a moment on a GPU, or at another time
UNKNOWN = 3.0  # of s at first: seconds are not known, only their ratios
SHARED = 0.6  # correlation of what a table has wrong about two kinds: passes over several rows cost alike
OUTLIER = 2.5
CHEAPEST, FALL = 0.7, 0.85  # `plausible`: of a plain step, of a round with fewer drafts


class Kind(NamedTuple):
    """A kind of round: drafts of one source are verified. Source "plain": a step without drafts."""

    source: str
    num_drafts: int

    def __str__(self) -> str:
        return f"{self.source} {self.num_drafts}" if self.num_drafts else self.source

    @staticmethod
    def named(name: str) -> "Kind":
        """The inverse of str. ValueError for anything else."""
        source, _, count = name.partition(" ")
        if name == "plain":
            return PLAIN
        if source not in ("heads", "lookup") or not count.isdecimal() or int(count) < 1:
            raise ValueError(f"kind of round: got {name!r}, expected plain, heads N or lookup N")
        return Kind(source, int(count))


PLAIN = Kind("plain", 0)


def heads(count: int) -> Kind:
    """The kind of round that verifies `count` drafts of the heads; 0: a plain step."""
    return Kind("heads", count) if count else PLAIN


def lookup(count: int) -> Kind:
    """The kind of round that verifies `count` drafts of prompt lookup."""
    return Kind("lookup", count)


def by_kind(costs: Mapping[str, float]) -> dict[Kind, float]:
    """Costs by name, as they are stored. Empty where a name is none, or plain steps are not among them."""
    with suppress(ValueError):
        found = {Kind.named(name): float(cost) for name, cost in costs.items()}
        return found if PLAIN in found else {}
    return {}


def plausible(costs: Mapping[Kind, float]) -> bool:
    """Whether these were measured in quiet: no round is far cheaper than a plain step, nor than one of the same source with
    fewer drafts. Others are not worth storing."""
    falls = False
    for source in {kind.source for kind in costs}:
        own = [costs[kind] for kind in sorted(kind for kind in costs if kind.source == source)]
        falls |= any(b < FALL * a for a, b in pairwise(own))
    return not falls and min(costs.values()) >= CHEAPEST * costs[PLAIN]


class RoundCosts:
    """table: relative or absolute seconds of every kind of round there is, PLAIN among them. `measured`: whether they were
    measured on this machine, or guessed. spread: how far they may be off, where neither says it (standard deviation of a
    logarithm)."""

    def __init__(self, table: Mapping[Kind, float], *, measured: bool = False, spread: float | None = None):
        if PLAIN not in table or not all(math.isfinite(t) and t > 0 for t in table.values()):
            raise ValueError(f"costs of rounds: got {dict(table)}, expected seconds above 0 of each kind, of plain steps too")
        self.kinds = list(table)
        self._row = {kind: 1 + i for i, kind in enumerate(self.kinds)}
        self._log = [0.0, *(math.log(table[kind] / table[PLAIN]) for kind in self.kinds)]
        size, own = len(self._log), spread or (MEASURED if measured else GUESSED)
        self._state = [0.0] * size  # s, c_1, .., c_n
        self._cov = [[own**2 * (1.0 if i == j else SHARED) for j in range(size)] for i in range(size)]
        for fixed in (0, self._row[PLAIN]):  # plain steps are the measure of the others: their c is 0
            for i in range(size):
                self._cov[i][fixed] = self._cov[fixed][i] = 0.0
        self._cov[0][0] = UNKNOWN**2
        self._units()

    def _units(self) -> None:
        self._cost = {kind: math.exp(self._log[i] + self._state[i]) for kind, i in self._row.items()}

    def __contains__(self, kind: Kind) -> bool:
        return kind in self._row

    def cost(self, kind: Kind) -> float:
        """Plain steps that a round of this kind takes as long as."""
        return self._cost[kind]

    def spread(self, kind: Kind) -> float:
        """Standard deviation of the logarithm of `cost`."""
        return math.sqrt(max(0.0, self._cov[self._row[kind]][self._row[kind]]))

    @property
    def plain_seconds(self) -> float:
        """Of a plain step, now. Without a meaning before the first observation."""
        return math.exp(self._state[0])

    def observe(self, kind: Kind, seconds: float) -> None:
        """One round took so long. Times that are no times (0, NaN) are left out."""
        if not (seconds > 0 and math.isfinite(seconds)):
            return
        i, cov, size = self._row[kind], self._cov, len(self._state)
        cov[0][0] += WANDER**2
        if kind != PLAIN:
            cov[i][i] += DRIFT**2
        gains = [cov[r][0] + cov[r][i] for r in range(size)]
        variance = gains[0] + gains[i] + NOISE**2
        limit = OUTLIER * math.sqrt(variance)
        surprise = math.log(seconds) - (self._state[0] + self._log[i] + self._state[i])
        surprise = max(-limit, min(limit, surprise))
        for r in range(size):
            share = gains[r] / variance
            if share == 0.0:
                continue
            self._state[r] += share * surprise
            row = cov[r]
            for c in range(size):
                row[c] -= share * gains[c]
        self._units()

    def table(self) -> dict[Kind, float]:
        """What is believed now, in plain steps."""
        return dict(self._cost)
