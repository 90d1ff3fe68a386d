"""Bound texts over a scripted model of random logits: whatever is drafted, the text is that of plain decoding under the same
masks; the constraint is always where the text is."""

from typing import Any

import numpy as np
import pytest
from helpers.bound import PROMPT, VOCAB, HashedLogits, Paths, Shuffled, opened, plain_bound, written

from mtpd_mlx.speculative.constrained import ConstrainedBackend
from mtpd_mlx.speculative.drafting import FixedDrafting
from mtpd_mlx.speculative.loop import generate
from mtpd_mlx.speculative.sampling import Sampling
from mtpd_mlx.speculative.significance import Evidence


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("forced", [False, True])
def test_greedy_text_is_the_plain_one(seed: int, forced: bool) -> None:
    expected = plain_bound(HashedLogits(VOCAB, seed=seed), Paths(VOCAB, seed, forced), PROMPT, 40, {0})
    for drafting in (FixedDrafting(0), FixedDrafting(3), Shuffled(seed)):
        for right in (0.0, 0.5, 1.0):
            backend = opened(drafting, Paths(VOCAB, seed, forced), seed=seed, right=right)
            assert written(backend, 40) == expected
    plain = opened(FixedDrafting(3), Paths(VOCAB, seed, forced), seed=seed)
    assert written(plain, 40, plain=True) == expected


def test_masked_drafts_are_accepted_where_the_head_is_right() -> None:
    backend = opened(FixedDrafting(3), Paths(VOCAB, 1), seed=1, right=1.0)
    rounds = [c.round for c in generate(backend, PROMPT, max_tokens=30, eos_token_ids={0}) if c.round]
    assert all(r.accepted == r.proposed for r in rounds) and sum(r.proposed for r in rounds) > len(rounds)


def test_forced_tokens_need_no_head() -> None:
    backend = opened(FixedDrafting(3), Paths(VOCAB, 2, True), seed=2, right=0.0)
    rounds = [c.round for c in generate(backend, PROMPT, max_tokens=40, eos_token_ids={0}) if c.round]
    known = [r for r in rounds if r.source == "grammar"]
    assert known and all(r.accepted == r.proposed for r in known)


def test_a_text_goes_on_after_rewinds_and_another_prompt() -> None:
    constraint = Paths(VOCAB, 3)
    backend = opened(FixedDrafting(3), constraint, seed=3, right=0.6)
    first = written(backend, 12)
    assert constraint.taken == first[:-1]
    backend.rewind_to(len(PROMPT) + 4)
    assert constraint.taken == first[:4]
    again = [first[4]]
    while len(again) < len(first) - 4:
        again += backend.round(again[-1]).emitted
    assert again[: len(first) - 4] == first[4:]
    backend.rewind_to(2)
    backend.bind(Paths(VOCAB, 3))
    assert written(backend, 12, PROMPT[2:]) == first


def test_another_token_than_the_model_s_may_be_named() -> None:
    constraint = Paths(VOCAB, 4)
    backend = opened(FixedDrafting(2), constraint, seed=4)
    backend.prefill(PROMPT)
    other = int(np.flatnonzero(constraint.allowed())[-1])
    backend.round(other)
    assert constraint.taken[0] == other
    refused = int(np.flatnonzero(~constraint.allowed())[-1])
    with pytest.raises(ValueError, match="the grammar of this text has no place for it"):
        backend.round(refused)


def test_what_is_interrupted_leaves_text_and_constraint_together() -> None:
    constraint = Paths(VOCAB, 5)
    backend = opened(FixedDrafting(3), constraint, seed=5, right=0.5)
    token = backend.prefill(PROMPT)
    model: Any = backend.model
    model.fault = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        backend.round(token)
    model.fault = None
    assert constraint.taken == [] and backend.length == len(PROMPT)
    emitted = backend.round(token).emitted
    assert constraint.taken == [token, *emitted[:-1]]


def test_without_a_constraint_there_is_no_text() -> None:
    with pytest.raises(ValueError, match="expected bind"):
        ConstrainedBackend(HashedLogits(VOCAB), FixedDrafting(0)).prefill(PROMPT)


OPTIONS = [
    Sampling(temp=1.0, seed=3),
    Sampling(temp=0.8, top_p=0.9, top_k=4, seed=4),
    Sampling(temp=0.7, min_p=0.1, repetition_penalty=1.4, xtc_probability=0.5, xtc_threshold=0.1, seed=5),
]


@pytest.mark.parametrize("sampling", OPTIONS, ids=["plain", "cut", "penalty"])
@pytest.mark.parametrize("drafts", [0, 3])
def test_sampled_texts_follow_the_masked_distribution(sampling: Sampling, drafts: int) -> None:
    """Each token against what plain decoding under the same masks draws from, XTC averaged."""
    from helpers.bound import masked_marginal

    constraint, evidence = Paths(VOCAB, 6), Evidence()
    backend = opened(FixedDrafting(drafts) if drafts == 0 else Shuffled(1), constraint, sampling, seed=6, right=0.5)
    for _ in range(120):
        backend.rewind_to(0)
        backend.bind(Paths(VOCAB, 6))
        text = written(backend, 16)
        evidence.add(masked_marginal(HashedLogits(VOCAB, seed=6), Paths(VOCAB, 6), PROMPT, text, sampling), np.array(text))
    assert evidence.p_value > 1e-3
