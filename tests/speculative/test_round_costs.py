"""Costs of rounds: learned from times, in plain steps, whatever the machine's own pace does."""

import math

import numpy as np
import pytest

from mtpd_mlx.speculative.round_costs import PLAIN, RoundCosts, heads, lookup, plausible

TRUE = {PLAIN: 1.0, heads(1): 1.3, heads(2): 1.6, heads(4): 2.2, lookup(4): 1.4}


def watch(costs: RoundCosts, rounds: int, pace=lambda i: 0.01, outliers: float = 0.0, seed: int = 0) -> None:
    rng, kinds = np.random.default_rng(seed), list(TRUE)
    for i in range(rounds):
        kind = kinds[int(rng.integers(len(kinds)))]
        slow = 20.0 if rng.random() < outliers else 1.0
        costs.observe(kind, TRUE[kind] * pace(i) * slow * math.exp(0.1 * rng.normal()))


def test_a_wrong_table_is_mended_by_few_rounds():
    costs = RoundCosts({PLAIN: 1.0, heads(1): 2.0, heads(2): 3.0, heads(4): 4.0, lookup(4): 1.0})
    watch(costs, 60)
    for kind, cost in TRUE.items():
        assert costs.cost(kind) == pytest.approx(cost, rel=0.12), kind


@pytest.mark.parametrize("pace", [lambda i: 0.01 * (1 + i / 50), lambda i: 0.01 if i < 60 else 0.03], ids=["slower", "jump"])
def test_the_pace_of_the_machine_is_no_kinds_own(pace):
    costs = RoundCosts(TRUE, measured=True)
    watch(costs, 120, pace)
    for kind, cost in TRUE.items():
        assert costs.cost(kind) == pytest.approx(cost, rel=0.1), kind
    assert costs.plain_seconds == pytest.approx(pace(119), rel=0.3)


def test_a_pace_seen_in_one_kind_holds_for_all():
    """Only rounds of four drafts are seen while the machine becomes three times slower: their cost hardly moves."""
    costs = RoundCosts(TRUE, measured=True)
    watch(costs, 40)
    for _ in range(60):
        costs.observe(heads(4), 3 * 0.01 * TRUE[heads(4)])
    assert costs.cost(heads(4)) == pytest.approx(TRUE[heads(4)], rel=0.1)
    assert costs.plain_seconds == pytest.approx(0.03, rel=0.15)


def test_outliers_count_little():
    costs = RoundCosts(TRUE, measured=True)
    watch(costs, 200, outliers=0.05)
    for kind, cost in TRUE.items():
        assert costs.cost(kind) == pytest.approx(cost, rel=0.12), kind


def test_the_first_times_set_the_pace():
    costs = RoundCosts(TRUE)
    costs.observe(heads(2), 0.032)
    assert costs.plain_seconds == pytest.approx(0.02, rel=0.1)
    assert costs.cost(PLAIN) == 1.0 and costs.spread(PLAIN) == 0.0
    assert costs.spread(heads(2)) > 0


def test_times_that_are_none_change_nothing():
    costs = RoundCosts(TRUE)
    before = costs.table()
    for seconds in (0.0, -1.0, float("nan"), float("inf")):
        costs.observe(heads(1), seconds)
    assert costs.table() == before


@pytest.mark.parametrize("table", [{}, {heads(1): 1.0}, {PLAIN: 0.0}, {PLAIN: 1.0, heads(1): float("nan")}])
def test_a_table_without_plain_steps_or_with_no_times_is_refused(table):
    with pytest.raises(ValueError, match="expected seconds above 0"):
        RoundCosts(table)


def test_costs_of_a_busy_machine_are_not_plausible() -> None:
    quiet = {PLAIN: 2.0, heads(1): 2.4, heads(4): 3.4, lookup(3): 2.2, lookup(7): 2.1}
    assert plausible(quiet) and plausible({PLAIN: 1.0})
    assert not plausible(quiet | {heads(1): 1.2})  # of a plain step
    assert not plausible(quiet | {heads(1): 4.5}) and not plausible(quiet | {lookup(3): 2.6})  # more drafts are cheaper
