"""The rule of sampling in numpy: against mlx-lm's samplers, against exact distributions, and broken on purpose."""

from collections.abc import Callable

import numpy as np
import pytest

from mtpd_mlx.model.runtime import mx
from mtpd_mlx.speculative.sampling import (
    LARGEST,
    Sampling,
    accept_sampled,
    draw,
    penalise,
    probabilities,
    residual,
    uniforms,
)

VOCAB = 50


def logits_of(rows: int, seed: int = 0, scale: float = 2.0) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=(rows, VOCAB)) * scale).astype(np.float32)


OPTIONS = [
    Sampling(temp=1.0),
    Sampling(temp=0.7),
    Sampling(temp=0.7, top_p=0.9),
    Sampling(temp=1.3, min_p=0.1),
    Sampling(temp=1.0, top_k=5),
    Sampling(temp=0.6, top_p=0.95, top_k=20, min_p=0.02),
]


@pytest.mark.parametrize("temp", [1e-20, 1e-40, 5e-324])
def test_the_smallest_temperatures_take_the_most_probable_token(temp: float) -> None:
    logits = logits_of(4)
    assert np.array_equal(probabilities(logits, Sampling(temp=temp)), np.eye(VOCAB, dtype=np.float32)[logits.argmax(-1)])


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_probabilities_are_those_of_mlx_lm(options: Sampling) -> None:
    from mlx_lm.sample_utils import apply_min_p, apply_top_k, apply_top_p

    logits = logits_of(6)
    logprobs = mx.array(logits) - mx.logsumexp(mx.array(logits), axis=-1, keepdims=True)
    if options.top_p:
        logprobs = apply_top_p(logprobs, options.top_p)
    if options.min_p:
        logprobs = apply_min_p(logprobs, options.min_p)
    if options.top_k:
        logprobs = apply_top_k(logprobs, options.top_k)
    expected = np.array(mx.softmax(logprobs * (1.0 / options.temp), axis=-1))
    np.testing.assert_allclose(probabilities(logits, options), expected, atol=2e-6)


def test_repetition_penalty_is_that_of_mlx_lm() -> None:
    from mlx_lm.sample_utils import make_repetition_penalty

    logits, context = logits_of(1), [3, 7, 7, 49, 0]
    expected = make_repetition_penalty(1.3)(mx.array(context), mx.array(logits))
    np.testing.assert_allclose(penalise(logits, np.array([context]), 1.3), np.array(expected), atol=1e-6)


def test_temperature_zero_with_a_penalty_takes_the_best_token_that_is_left() -> None:
    logits = np.array([[1.0, 3.0, 2.9]], np.float32)
    p = probabilities(logits, Sampling(repetition_penalty=2.0), np.array([[1]]))
    assert p.tolist() == [[0.0, 0.0, 1.0]]


def test_draw_takes_the_token_where_the_running_sum_exceeds_u() -> None:
    weights = np.array([0.0, 0.25, 0.0, 0.5, 0.25, 0.0])
    assert [draw(weights, u) for u in (0.0, 0.24, 0.25, 0.74, 0.75, LARGEST, 1.0)] == [1, 1, 3, 3, 4, 4, 4]


def test_uniforms_are_below_one_in_float32() -> None:
    table = uniforms(10000, np.random.default_rng(0))
    assert table.dtype == np.float32 and table.min() >= 0 and table.max() <= LARGEST < 1


def test_residual_of_equal_distributions_is_the_distribution() -> None:
    p = np.array([0.25, 0.75])
    assert residual(p, p) is p


@pytest.mark.parametrize(
    "bad", [{"temp": -1}, {"top_p": 1.5}, {"min_p": -0.1}, {"top_k": -1}, {"repetition_penalty": 0}], ids=str
)
def test_options_out_of_range_are_named(bad: dict) -> None:
    with pytest.raises(ValueError, match=f"--{next(iter(bad)).replace('_', '-')}: got"):
        Sampling(**bad)


# Statistics: 40,000 draws of (accepted, token) over 2 drafts against the exact joint distribution of the first token. With
# 6 tokens, chi-square has 5 degrees of freedom: P(> 27.9) = 4e-5 under the right rule, while a rule that draws from p
# instead of the residual is off by sum (dp)^2 / p * 40,000 > 400.
CRITICAL, DRAWS = 27.9, 40_000


def chi_square(rule: Callable[[np.ndarray, np.ndarray, list[int], np.ndarray], tuple[int, int]], seed: int) -> float:
    rng = np.random.default_rng(seed)
    p, q = (rng.dirichlet(np.ones(6), 3) for _ in range(2))
    counts = np.zeros(6)
    tables = uniforms(3 * DRAWS, rng).reshape(DRAWS, 3, 3)
    for table in tables:
        drafts = [draw(q[i], table[i, 2]) for i in range(2)]
        accepted, token = rule(p, q[:2], drafts, table)
        counts[drafts[0] if accepted else token] += 1
    return float(((counts - DRAWS * p[0]) ** 2 / (DRAWS * p[0])).sum())


@pytest.mark.parametrize("seed", [0, 1])
def test_the_first_token_is_distributed_as_the_main_head_says(seed: int) -> None:
    assert chi_square(accept_sampled, seed) < CRITICAL


def test_a_rule_without_the_residual_would_be_found_out() -> None:
    def broken(p: np.ndarray, q: np.ndarray, drafts: list[int], table: np.ndarray) -> tuple[int, int]:
        accepted, token = accept_sampled(p, q, drafts, table)
        return (accepted, draw(p[accepted], table[accepted, 1])) if accepted < len(drafts) else (accepted, token)

    assert chi_square(broken, 0) > 10 * CRITICAL


def test_a_rule_that_accepts_too_much_would_be_found_out() -> None:
    def broken(p: np.ndarray, q: np.ndarray, drafts: list[int], table: np.ndarray) -> tuple[int, int]:
        return accept_sampled(np.minimum(1.2 * p, 1), q, drafts, table)

    assert chi_square(broken, 0) > 3 * CRITICAL
