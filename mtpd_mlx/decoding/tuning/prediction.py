"""`speedup`, `break_even`, `best`: speed predicted from measured costs. Arithmetic only.
Called by `mtpd probe`.

With K drafts a round costs R(K) seconds and brings tau = 1 + sum CAR_k tokens; plain decoding takes T(1) a token:

    speed-up = tau T(1) / R(K);  break-even: the constant AR a at which 1 + a + ... + a^K = R(K) / T(1)
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Costs:
    """Seconds at one context length: a plain step, a verify pass over m tokens, a whole round with K drafts; the plan of rounds
    and passes."""

    context: int
    plain: float
    verify: dict[int, float]
    rounds: dict[int, float]
    plan: str = "growing"

    def round(self, drafts: int) -> float:
        """R(K); between measured numbers of drafts on a straight line, beyond them along the last one. K = 0: a plain step."""
        points = sorted({0: self.plain, **self.rounds}.items())
        if drafts in dict(points):
            return dict(points)[drafts]
        above = next((i for i, (k, _) in enumerate(points) if k > drafts), len(points) - 1)
        (k0, r0), (k1, r1) = points[above - 1], points[above]
        return r0 + (r1 - r0) * (drafts - k0) / (k1 - k0)

    def head(self, drafts: int) -> float:
        """What one head adds to a round of so many drafts, the verify pass taken off."""
        return (self.round(drafts) - self.verify[drafts + 1]) / drafts


def profile(acceptance: float, drafts: int) -> list[float]:
    """CAR by depth where every draft is accepted with the same probability, given those before."""
    return [acceptance**k for k in range(1, drafts + 1)]


def speedup(costs: Costs, car: Sequence[float]) -> float:
    """Against plain decoding, with as many drafts as `car` has entries."""
    return (1 + sum(car)) * costs.plain / costs.round(len(car))


def break_even(costs: Costs, drafts: int) -> float | None:
    """The AR above which so many drafts win; None where even certain drafts lose."""
    needed = costs.round(drafts) / costs.plain
    if needed > drafts + 1:
        return None
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if 1 + sum(profile(middle, drafts)) < needed else (low, middle)
    return high


def best(costs: Costs, car: Sequence[float]) -> tuple[int, float]:
    """(number of drafts, speed-up) for heads of this CAR by depth; (0, 1.0) where plain decoding wins."""
    options = [(speedup(costs, car[:k]), k) for k in range(1, len(car) + 1)]
    top = max(options, default=(0.0, 0))
    return (top[1], top[0]) if top[0] > 1 else (0, 1.0)
