"""Teacher forcing measures what the decoder does; the decoder's tokens are plain decoding's."""

from pathlib import Path

import numpy as np
import pytest
from helpers.decode import decoded
from tiny import VOCAB, write_base, write_checkpoint

from mtpd_mlx.measure.acceptance import match_tables
from mtpd_mlx.measure.evaluate import measure, round_starts
from mtpd_mlx.measure.step_model import MLXModel
from mtpd_mlx.model.generate import Generation, generate_greedy
from mtpd_mlx.model.load_save import load_checkpoint
from mtpd_mlx.model.runtime import mx
from mtpd_mlx.speculative.rounds import StepBackend
from mtpd_mlx.speculative.stats import acceptance_table, walk
from mtpd_mlx.train.extend import loop_heads, stages

PROMPTS = [[5, 6, 7], [9], [11, 3, 50, 4, 60, 2, 8, 1], list(range(40)), [3, 3]]


@pytest.fixture(scope="module", params=["postnorm", "prenorm"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("acceptance")
    base = write_base(folder / "base", scale=2.0)
    return write_checkpoint(folder / "heads", base, num_heads=3, hidden_source=request.param, noise=0.01)


def test_speculative_equals_plain_and_teacher_forcing_equals_the_decoder(checkpoint: Path) -> None:
    base, heads, _ = load_checkpoint(checkpoint)
    count, seen = 60, set()
    for prompt in PROMPTS:
        plain, _ = decoded(StepBackend(MLXModel(base, None)), prompt, count, plain=True)
        tokens, accepted = decoded(StepBackend(MLXModel(base, heads)), prompt, count)
        assert tokens == plain
        (table,) = match_tables(base, heads, [Generation(prompt, plain)])
        counted = walk(table)
        assert len(counted) > 5 and accepted[: len(counted)] == counted
        seen |= set(accepted)
    assert len(seen) >= 3, f"accept lengths seen: {seen}"


def test_batched_greedy_equals_single(checkpoint: Path) -> None:
    base, _, _ = load_checkpoint(checkpoint)
    texts = generate_greedy(base, PROMPTS, 20, frozenset())
    assert [t.prompt for t in texts] == PROMPTS
    for text in texts:
        assert text.tokens == decoded(StepBackend(MLXModel(base, None)), text.prompt, 20, plain=True)[0]


def test_rewinding_anywhere_keeps_drafts_right(checkpoint: Path) -> None:
    """After any rewind the drafts are those of a fresh model given the same tokens."""
    base, heads, _ = load_checkpoint(checkpoint)
    rng = np.random.default_rng(0)
    model, tokens = MLXModel(base, heads), []
    for _ in range(25):
        new = rng.integers(0, VOCAB, rng.integers(1, 7)).tolist()
        model.verify(new)
        tokens += new
        if rng.random() < 0.6:
            model.draft(int(rng.integers(0, VOCAB)))
        if rng.random() < 0.6:
            keep = int(rng.integers(0, len(tokens) + 1))
            model.rewind_to(keep)
            tokens = tokens[:keep]
        assert model.tokens == tokens
        if tokens:
            fresh = MLXModel(base, heads)
            fresh.prefill(tokens)
            following = int(rng.integers(0, VOCAB))
            assert model.draft(following) == fresh.draft(following)


def test_fewer_drafts_than_heads(checkpoint: Path) -> None:
    base, heads, _ = load_checkpoint(checkpoint)
    full, _ = decoded(StepBackend(MLXModel(base, heads)), PROMPTS[2], 30)
    for k in (0, 1, 2):
        assert decoded(StepBackend(MLXModel(base, heads, num_draft_tokens=k)), PROMPTS[2], 30)[0] == full
    with pytest.raises(ValueError, match=r"got 4, expected 0\.\.3"):
        MLXModel(base, heads, num_draft_tokens=4)


def test_context_can_be_filled(checkpoint: Path) -> None:
    base, heads, _ = load_checkpoint(checkpoint)
    plain, _ = decoded(StepBackend(MLXModel(base, None, capacity=40)), PROMPTS[0], 100, plain=True)
    tokens, _ = decoded(StepBackend(MLXModel(base, heads, capacity=40)), PROMPTS[0], 100)
    assert tokens == plain and len(tokens) == 40 - len(PROMPTS[0]) + 1


def test_measure_reports_all_and_new_4_grams(checkpoint: Path) -> None:
    base, heads, _ = load_checkpoint(checkpoint)
    texts = generate_greedy(base, PROMPTS, 40, frozenset())
    figures = measure(base, heads, texts)
    counts = [c for table in match_tables(base, heads, texts) for c in walk(table)]
    assert figures["tau"] == acceptance_table(counts, 3).tau
    assert figures["novel"]["rounds"] <= figures["rounds"] == len(counts)
    assert round_starts([2, 0, 1]) == [0, 3, 4]


def test_looped_heads_are_copies_and_old_heads_identical(checkpoint: Path) -> None:
    base, heads, _ = load_checkpoint(checkpoint)
    longer = loop_heads(base, heads, 5)
    for j in range(5):
        a, b = longer.heads[j].eh_proj.weight, heads.heads[j % 3].eh_proj.weight
        assert mx.array_equal(a, b)
    assert stages(4, 16) == [8, 16] and stages(4, 7) == [7] and stages(3, 16) == [6, 12, 16]
    with pytest.raises(ValueError, match="got 3, expected more than"):
        stages(3, 3)
