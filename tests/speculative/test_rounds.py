"""Acceptance and one round."""

import numpy as np
import pytest
from helpers.fakes import ScriptedModel, hashed, plain_text

from mtpd_mlx.speculative.protocol import Round
from mtpd_mlx.speculative.rounds import PREFILL_CHUNK, StepBackend, accept_greedy


def test_accept_greedy_counts_the_leading_run():
    assert accept_greedy([1, 2, 3], [1, 2]) == 2
    assert accept_greedy([1, 9, 3], [1, 2]) == 1
    assert accept_greedy([9, 2, 3], [1, 2]) == 0  # a later match is worth nothing
    assert accept_greedy([5], []) == 0
    assert accept_greedy(np.array([1, 2, 3]), [1, 2]) == 2


def test_accept_greedy_refuses_lengths_that_do_not_fit():
    with pytest.raises(ValueError, match="got 2 tokens for 2 drafts, expected 3"):
        accept_greedy([1, 2], [1, 2])


def test_round_refuses_counts_that_do_not_fit():
    with pytest.raises(ValueError, match="expected one token more"):
        Round([1, 2], 2, 4)


@pytest.mark.parametrize("right", [0, 1, 3, 4])
def test_round_emits_the_run_and_the_main_heads_own_token(right):
    model = ScriptedModel(script=iter([right]))
    backend = StepBackend(model)
    first = backend.prefill([3, 1, 4, 1, 5])
    result = backend.round(first)
    expected = plain_text(hashed, [3, 1, 4, 1, 5], right + 2)
    assert result.emitted == expected[1:] and all(type(t) is int for t in result.emitted)
    assert (result.accepted, result.proposed) == (right, 4)
    assert model.tokens == [3, 1, 4, 1, 5, *expected[:-1]]  # the last emitted token is not cached
    assert result.draft_seconds >= 0 and result.verify_seconds >= 0


def test_drafts_are_made_when_a_round_needs_them():
    model = ScriptedModel()
    backend = StepBackend(model)
    backend.step(backend.prefill([1, 2, 3]))
    assert "draft" not in dict(model.calls)
    backend.round(7)
    assert "draft" in dict(model.calls)


def test_fewer_drafts_than_the_model_has():
    model = ScriptedModel()
    backend = StepBackend(model, num_draft_tokens=2)
    result = backend.round(backend.prefill([1, 2, 3]))
    assert (result.accepted, result.proposed, len(result.emitted)) == (2, 2, 3)
    assert model.calls[-2] == ("verify", 3)
    nothing = StepBackend(ScriptedModel(), num_draft_tokens=0)
    assert nothing.round(nothing.prefill([1, 2, 3])).proposed == 0
    with pytest.raises(ValueError, match=r"num_draft_tokens: got 5, expected 0\.\.4"):
        StepBackend(ScriptedModel(), num_draft_tokens=5)


def test_prefill_in_chunks_and_through_the_models_own():
    prompt = [i % 90 for i in range(PREFILL_CHUNK + 3)]
    model = ScriptedModel(capacity=2048)
    assert StepBackend(model).prefill(prompt) == hashed(prompt)
    assert model.calls == [("verify", PREFILL_CHUNK), ("verify", 3)]

    class OwnPrefill(ScriptedModel):
        def prefill(self, tokens):
            return int(super().verify(tokens)[-1])

    own = OwnPrefill(capacity=2048)
    assert StepBackend(own).prefill(prompt) == hashed(prompt)
    assert own.calls == [("verify", PREFILL_CHUNK + 3)]


def test_a_full_cache_is_told_before_anything_is_written():
    model = ScriptedModel(capacity=8)
    backend = StepBackend(model)
    with pytest.raises(ValueError, match="got 0 \\+ 9 positions, expected at most 8"):
        backend.prefill(range(9))
    backend.prefill([1, 2, 3, 4])
    with pytest.raises(ValueError, match="context full"):
        backend.round(1)
    assert model.length == 4
    for token in range(4):
        backend.step(token)
    with pytest.raises(ValueError, match="context full"):
        backend.step(1)
    with pytest.raises(ValueError, match="at least one"):
        backend.prefill([])
    with pytest.raises(ValueError, match="rewind_to"):
        backend.rewind_to(9)
