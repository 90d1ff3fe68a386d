"""The choice of drafts on simulated texts: near the best fixed number of drafts, and hardly ever slower than plain decoding."""

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from mtpd_mlx.speculative.choice import ALLOWED, LEDGER, Chooser, DepthAcceptance, tokens_of
from mtpd_mlx.speculative.round_costs import PLAIN, Kind, RoundCosts, heads, lookup

# Measured rounds in plain steps: fp32, int4 and int8 activations on a CPU, fp16 on a GPU.
TABLES = {
    "fp32": {PLAIN: 1.0, heads(1): 1.3, heads(2): 1.55, heads(4): 2.04},
    "int4": {PLAIN: 1.0, heads(1): 2.0, heads(2): 2.65, heads(4): 3.35},
    "int8": {PLAIN: 1.0, heads(1): 1.08, heads(2): 1.65, heads(4): 2.15},
    "cuda": {PLAIN: 1.0, heads(1): 1.2, heads(2): 1.3, heads(4): 1.5},
}
Text = Callable[[int], float]  # token of the text -> AR of every depth there
Outcome = tuple[float, Counter[Kind]]  # tokens per plain step, rounds of each kind


def same(p: float) -> Text:
    return lambda n: p


def turns(first: float, second: float, every: int) -> Text:
    return lambda n: first if n // every % 2 == 0 else second


def simulate(text: Text, true: dict[Kind, float], tokens: int, seed: int, *, fixed: int | None = None, table=None) -> Outcome:
    """Times are noisy, one in a hundred five times too long. `table`: what is believed at first (default: the truth)"""
    rng, used, done, spent = np.random.default_rng(seed), Counter[Kind](), 0, 0.0
    chooser = Chooser(RoundCosts(table or true, measured=table is None), (1, 2, 4))
    while done < tokens:
        kind = chooser.choose() if fixed is None else heads(fixed)
        accepted = 0
        while accepted < kind.num_drafts and rng.random() < text(done):
            accepted += 1
        seconds = 0.01 * true[kind] * np.exp(0.08 * rng.normal()) * (5 if rng.random() < 0.01 else 1)
        chooser.observe(kind, accepted, seconds=seconds)
        used[kind] += 1
        done, spent = done + accepted + 1, spent + true[kind]
    return done / spent, used


def mean(text: Text, true: dict[Kind, float], tokens: int = 1500, seeds: int = 3, **more) -> float:
    return float(np.mean([simulate(text, true, tokens, seed, **more)[0] for seed in range(seeds)]))


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("p", [0.05, 0.3, 0.6, 0.8, 0.95])
def test_as_fast_as_the_best_fixed_number_of_drafts(name: str, p: float):
    true = TABLES[name]
    best = max(1.0, *(mean(same(p), true, fixed=k) for k in (1, 2, 4)))
    assert mean(same(p), true) >= 0.92 * best


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("p", [0.0, 0.1, 0.2, 0.3])
def test_hardly_slower_than_plain_on_a_short_text_either(name: str, p: float):
    """LEDGER bounds what a text of 256 tokens can lose."""
    for seed in range(8):
        assert simulate(same(p), TABLES[name], 256, seed)[0] >= 0.975
        assert simulate(same(p), TABLES[name], 1500, seed)[0] >= 0.98


def test_a_hopeless_text_costs_less_than_a_percent_to_look_at():
    speed, used = simulate(same(0.0), TABLES["fp32"], 6000, seed=0)
    assert speed >= 0.99
    assert used.total() - used[PLAIN] >= 20  # it still looks now and then


@pytest.mark.parametrize("every", [200, 400])
@pytest.mark.parametrize("name", ["fp32", "int8", "cuda"])
def test_a_text_that_changes_is_followed(name: str, every: int):
    """Better than any fixed number of drafts, which must serve both halves."""
    text, true = turns(0.05, 0.92, every), TABLES[name]
    best = max(1.0, *(mean(text, true, 2400, fixed=k) for k in (1, 2, 4)))
    assert mean(text, true, 2400) >= (1.0 if name == "int8" else 1.04) * best * 0.99


def test_an_adversary_who_knows_every_choice_gains_nothing():
    """Drafts are right exactly until the chooser relies on them: then always wrong, until it gives up."""
    for name, true in TABLES.items():
        chooser = Chooser(RoundCosts(true, measured=True), (1, 2, 4))
        done, spent, bait = 0, 0.0, 0
        for _ in range(4000):
            kind = chooser.choose()
            trial = chooser._trial is not None
            bait = bait + 1 if trial else 0
            accepted = kind.num_drafts if trial else 0
            chooser.observe(kind, accepted)
            done, spent = done + accepted + 1, spent + true[kind]
        assert done / spent >= 0.98, name
        assert spent <= (1 + ALLOWED) * done + LEDGER + max(true.values()), name


def test_what_the_ledger_promises_holds_for_random_outcomes():
    rng = np.random.default_rng(5)
    for _ in range(20):
        true = TABLES[list(TABLES)[int(rng.integers(4))]]
        chooser, done, spent = Chooser(RoundCosts(true, measured=True), (1, 2, 4)), 0, 0.0
        for _ in range(300):
            kind = chooser.choose()
            accepted = int(rng.integers(kind.num_drafts + 1)) if rng.random() < 0.3 else 0
            chooser.observe(kind, accepted)
            done, spent = done + accepted + 1, spent + true[kind]
            assert spent <= (1 + ALLOWED) * done * 1.01 + LEDGER + max(true.values())


def test_costs_that_were_guessed_wrong_are_learned():
    guess = {PLAIN: 1.0, heads(1): 1.1, heads(2): 1.2, heads(4): 1.4}
    true = TABLES["int4"]
    assert mean(same(0.5), true, 2000, table=guess) >= 0.975
    slow = {PLAIN: 1.0, heads(1): 1.6, heads(2): 2.0, heads(4): 2.6}
    true = TABLES["cuda"]
    assert mean(same(0.7), true, 2000, table=slow) >= 0.93 * mean(same(0.7), true, 2000, fixed=4)


@pytest.mark.parametrize("timed", [True, False])
def test_a_runtime_that_proposes_before_it_observes_gets_its_drafts(timed: bool):
    """Plain steps are started ahead, as MLX does: the choice is asked for the next round, and where that is not a plain step,
    again once this one is read. Costs are guessed; without times none are learned, and none are waited for."""
    true, rng, done, spent = TABLES["fp32"], np.random.default_rng(0), 0, 0.0
    chooser, ahead = Chooser(RoundCosts(true), (1, 2, 4)), None
    while done < 600:
        kind = ahead or chooser.choose()
        ahead = chooser.choose() if kind == PLAIN else None
        accepted = 0
        while accepted < kind.num_drafts and rng.random() < 0.8:
            accepted += 1
        chooser.observe(kind, accepted, seconds=0.01 * true[kind] if timed else None)
        done, spent = done + accepted + 1, spent + true[kind]
        ahead = ahead if ahead == PLAIN else chooser.choose()
    assert done / spent >= 0.9 * mean(same(0.8), true, 600, fixed=4)


def test_the_same_text_and_times_make_the_same_choices():
    text = turns(0.2, 0.9, 70)
    assert simulate(text, TABLES["fp32"], 900, 3) == simulate(text, TABLES["fp32"], 900, 3)


def test_the_more_credible_drafts_win():
    costs = RoundCosts({**TABLES["cuda"], lookup(4): 1.1, lookup(8): 1.15}, measured=True)
    chooser = Chooser(costs, (1, 2, 4), prior=(0.7,))
    assert chooser.choose() == heads(4)
    assert chooser.choose([0.95**j for j in range(1, 17)]) == lookup(8)
    assert chooser.choose([0.95**j for j in range(1, 6)]) == lookup(4)  # there are no eight of them
    assert chooser.choose([0.3**j for j in range(1, 17)]) == heads(4)


def test_lookup_alone_needs_no_heads():
    chooser = Chooser(RoundCosts({PLAIN: 1.0, lookup(4): 1.5}, measured=True))
    assert chooser.choose() == PLAIN and chooser.choose([0.2, 0.1, 0.0, 0.0]) == PLAIN
    assert chooser.choose([0.9, 0.8, 0.7, 0.6]) == lookup(4)


def test_a_kind_without_a_cost_is_never_chosen():
    chooser = Chooser(RoundCosts({PLAIN: 1.0, heads(1): 1.0}), (1, 2, 4), prior=(0.98,))
    for _ in range(50):
        kind = chooser.choose()
        assert kind in (PLAIN, heads(1))
        chooser.observe(kind, kind.num_drafts)


def test_a_round_that_could_not_draft_counts_as_a_plain_step():
    chooser = Chooser(RoundCosts(TABLES["fp32"]), (1, 2, 4))
    before = chooser.acceptance.rates()
    chooser.observe(heads(4), 0, proposed=0)
    assert chooser.acceptance.rates() == before


def depth_rates(outcomes: Sequence[tuple[int, int]], depths: int = 4) -> list[float]:
    acceptance = DepthAcceptance(depths)
    for accepted, proposed in outcomes:
        acceptance.saw(accepted, proposed)
    return acceptance.rates()


def test_acceptance_follows_the_text_and_tells_depths_that_were_not_drafted():
    rates = depth_rates([(1, 1)] * 60)
    assert rates[0] > 0.9 and rates[3] > 0.75  # a text that the first head guesses is easy for the others too
    rates = depth_rates([(1, 4)] * 60)
    assert rates[0] > 0.85 and rates[1] < 0.15
    low = depth_rates([(0, 4)] * 60)
    assert low[0] < 0.1 and max(low[1:]) < 0.2
    assert depth_rates([(0, 4)] * 60 + [(4, 4)] * 60)[3] > 0.85


def test_tokens_of_a_round():
    assert tokens_of([0.5, 0.5, 0.5], 2) == 1 + 0.5 + 0.25
    assert tokens_of([], 0) == 1


def test_a_trial_is_charged_though_the_next_round_was_chosen_before_it_was_over() -> None:
    """As where a device starts rounds ahead: one more choice is made before the trial's round is observed."""
    costs = RoundCosts({PLAIN: 1.0, heads(1): 1.5, heads(2): 2.0}, measured=True)
    chooser, trials, pending = Chooser(costs, [1, 2], prior=[0.2, 0.2]), 0, [PLAIN]
    for _ in range(400):
        pending.append(chooser.choose())
        before = chooser.credit
        kind = pending.pop(0)
        chooser.observe(kind, 0, kind.num_drafts)
        if kind != PLAIN:
            trials += 1
            assert chooser.credit < before and pending[0] == PLAIN
    assert trials
