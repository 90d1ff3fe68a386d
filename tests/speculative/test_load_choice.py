"""Drafts of a batch: many where they are free, none where they cost more than they bring, and costs that are learned."""

import random

import pytest

from mtpd_mlx.speculative.load_choice import LoadChoice, costs_of_rows, size_class
from mtpd_mlx.speculative.round_costs import PLAIN, Kind, heads


def simulate(choice: LoadChoice, rows: int, rates: float, row: float, head: float, rounds: int = 300) -> list[int]:
    """The drafts chosen, where rounds take what costs_of_rows says of `row` and `head`."""
    random.seed(rows)
    true, chosen = costs_of_rows(rows, (1, 2, 3, 4), row, head), list[int]()
    for _ in range(rounds):
        count = choice.choose(rows)
        accepted = []
        for _ in range(rows):
            right = 0
            while right < count and random.random() < rates:
                right += 1
            accepted.append(right)
        seconds = true[heads(count)] * 0.01 * random.uniform(0.95, 1.05)
        choice.observe(rows, count, accepted, [count] * rows, seconds)
        chosen.append(count)
    return chosen


def chooser(row: float = 0.1, head: float = 0.1) -> LoadChoice:
    return LoadChoice(lambda rows: costs_of_rows(rows, (1, 2, 3, 4), row, head))


def share(chosen: list[int], *counts: int) -> float:
    later = chosen[100:]
    return sum(count in counts for count in later) / len(later)


def test_cheap_drafts_are_verified_and_dear_ones_are_not() -> None:
    assert share(simulate(chooser(0.01, 0.02), 4, 0.7, 0.01, 0.02), 3, 4) > 0.9
    assert share(simulate(chooser(1.0, 0.3), 16, 0.7, 1.0, 0.3), 0) > 0.9


@pytest.mark.parametrize(("row", "head", "right"), [(1.0, 0.4, (0,)), (0.005, 0.02, (2, 3, 4))])
def test_wrong_guesses_are_corrected_by_the_rounds(row: float, head: float, right: tuple[int, ...]) -> None:
    assert share(simulate(chooser(0.1, 0.1), 8, 0.75, row, head), *right) > 0.85


def test_the_load_decides() -> None:
    """Arithmetic that is free up to a point: few texts draft, many do not."""
    choice = chooser(0.05, 0.03)
    few, many = simulate(choice, 2, 0.6, 0.05, 0.03), simulate(choice, 16, 0.6, 1.0, 0.5)
    assert share(few, 0) < 0.1 and share(many, 0) > 0.8
    assert share(simulate(choice, 2, 0.6, 0.05, 0.03), 0) < 0.1


def test_what_was_measured_needs_no_learning() -> None:
    """Dear drafts that the guess takes for cheap: costs of an earlier run say so from the first round on."""
    wrong, right = (costs_of_rows(8, (1, 2, 3, 4), *costs) for costs in ((0.01, 0.01), (1.0, 0.5)))
    taught = LoadChoice(lambda rows: wrong)
    simulate(taught, 8, 0.6, 1.0, 0.5)
    rounds, table = taught.learned()[8]
    assert rounds == 300 and table[PLAIN] == 1 and table[heads(1)] == pytest.approx(right[heads(1)], rel=0.15)
    asked = list[int]()

    def known(size: int) -> dict[Kind, float] | None:
        asked.append(size)
        return table if size == 8 else {PLAIN: 1.0}

    assert sum(simulate(LoadChoice(lambda rows: wrong, known=known), 8, 0.6, 1.0, 0.5, 30)) <= 1
    assert sum(simulate(LoadChoice(lambda rows: wrong), 8, 0.6, 1.0, 0.5, 30)) > 4
    other = LoadChoice(lambda rows: wrong, known=known)
    assert other.choose(4) and asked[-1] == 4  # a table that lacks kinds is none


def test_classes_and_guesses() -> None:
    assert [size_class(n) for n in (1, 2, 3, 4, 5, 8, 9, 16, 17)] == [1, 2, 4, 4, 8, 8, 16, 16, 32]
    guess = costs_of_rows(4, (2,), 0.1, 0.2)
    assert guess[PLAIN] == 1 and guess[heads(2)] == pytest.approx((1 + 0.1 * 11 + 2 * 0.2 * 1.3) / 1.3)
    choice = LoadChoice(lambda rows: {PLAIN: 1.0})
    assert choice.choose(3) == 0
    choice.observe(3, 0, [0, 0, 0], [0, 0, 0], 0.1)
    choice.observe(3, 0, [], [])
