"""Bound texts on MLX: greedy text is that of plain decoding under the same masks, sampled text follows their distribution."""

from typing import Any

import numpy as np
import pytest
from helpers.bound import Paths
from helpers.schedule import Schedule
from tiny import VOCAB, write_base, write_checkpoint

from mtpd_mlx.decoding import logit_model, text_state
from mtpd_mlx.decoding.open import open_constrained
from mtpd_mlx.measure.step_model import MLXModel
from mtpd_mlx.model.load_save import load_for_decoding
from mtpd_mlx.options.decode import DecodingConfig
from mtpd_mlx.speculative.constrained import ConstrainedBackend
from mtpd_mlx.speculative.loop import generate
from mtpd_mlx.speculative.sampling import Sampling, marginal
from mtpd_mlx.speculative.significance import Evidence
from mtpd_mlx.speculative.verify import text_logits

K, CAPACITY = 4, 90


@pytest.fixture(scope="module", params=["postnorm", "prenorm", "drafts"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple:
    folder = tmp_path_factory.mktemp("model")
    base = write_base(folder / "base", scale=8.0)
    drafts = list(range(0, VOCAB, 2)) if request.param == "drafts" else None
    source = "prenorm" if request.param == "prenorm" else "postnorm"
    return load_for_decoding(write_checkpoint(folder / "heads", base, K, source, draft_tokens=drafts))[:2]


def bound(model: tuple, drafting: Any, sampling: Sampling | None = None, **options: Any) -> ConstrainedBackend:
    backend = open_constrained(*model, capacity=CAPACITY, sampling=sampling or Sampling(), **options)
    backend.drafting = drafting or backend.drafting
    return backend


def written(backend: ConstrainedBackend, constraint: Paths, prompt: list[int], length: int) -> list[int]:
    backend.bind(constraint)
    chunks = generate(backend, prompt, max_tokens=length, eos_token_ids={0})
    return [t for chunk in chunks for t in chunk.tokens]


def plain(model: tuple, constraint: Paths, prompt: list[int], length: int) -> list[int]:
    """The oracle: one token a pass."""
    reference, text = MLXModel(model[0], None), list[int]()
    while len(text) < length and not (text and text[-1] == 0):
        row = reference.logits(text[-1:] or prompt)[-1]
        text.append(int(np.where(constraint.allowed(), row, -np.inf).argmax()))
        constraint.taken.append(text[-1])
    return text


@pytest.mark.parametrize("known", [False, True])
def test_any_schedule_gives_the_plain_bound_text(model: tuple, known: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_state, "PREFILL_CHUNK", 7)
    monkeypatch.setattr(Schedule, "observe", lambda self, *rest: self.used.update([str(rest[0].kind)]))
    monkeypatch.setattr(Schedule, "align", Schedule.begin)
    for seed in range(2):
        rng, drafting = np.random.default_rng(seed), Schedule(seed)
        backend = bound(model, drafting)
        for _ in range(2):
            prompt = rng.integers(0, VOCAB, rng.integers(1, 30)).tolist()
            backend.rewind_to(0)
            text = written(backend, Paths(VOCAB, seed, known), prompt, 40)
            assert text == plain(model, Paths(VOCAB, seed, known), prompt, 40)
            kept = int(rng.integers(1, backend.length + 1))  # another text from somewhere inside of it
            backend.rewind_to(kept)
            more = rng.integers(0, VOCAB, 4).tolist()
            expected = plain(model, Paths(VOCAB, seed + 9, known), [*(prompt + text)[:kept], *more], 12)
            assert written(backend, Paths(VOCAB, seed + 9, known), more, 12) == expected


def test_every_way_to_open_it_gives_the_same_text(model: tuple) -> None:
    prompt = [5, 6, 7, 8, 9]
    expected = plain(model, Paths(VOCAB, 2), prompt, 30)
    for options in (
        {"num_draft_tokens": 0},
        {"num_draft_tokens": 2},
        {},
        {"lookup": False},
        {"options": DecodingConfig(exact=True)},
    ):
        backend = bound(model, None, **options)
        assert written(backend, Paths(VOCAB, 2), prompt, 30) == expected
        assert backend.num_draft_tokens == options.get("num_draft_tokens", K)
    with pytest.raises(ValueError, match="got 9, expected 0"):
        open_constrained(*model, num_draft_tokens=9)


def test_heads_that_see_the_masks_are_accepted_as_heads_that_never_lagged(model: tuple) -> None:
    """A fresh start at every round accepts what a long text does."""
    backend, prompt = bound(model, None, num_draft_tokens=K), [1, 2, 3, 4, 5, 6]
    constraint = Paths(VOCAB, 4)
    backend.bind(constraint)
    text, rounds = list(prompt), []
    for chunk in generate(backend, prompt, max_tokens=40, eos_token_ids={0}):
        rounds += [(len(text) - 1, chunk.round)] if chunk.round else []
        text += chunk.tokens
    for start, made in rounds[::5]:
        fresh = bound(model, None, num_draft_tokens=K)
        again = Paths(VOCAB, 4)
        fresh.bind(again)
        fresh.prefill(text[: len(prompt)])
        for token in text[len(prompt) : start]:
            fresh.step(token)
        assert fresh.round(text[start]).accepted == made.accepted


@pytest.mark.parametrize(
    "sampling", [Sampling(temp=1.0, seed=1), Sampling(temp=0.8, top_p=0.9, repetition_penalty=1.3, seed=2)]
)
def test_sampled_texts_follow_the_masked_distribution(model: tuple, sampling: Sampling) -> None:
    backend, evidence, reference = bound(model, None, sampling, num_draft_tokens=K), Evidence(), MLXModel(model[0], None)
    prompt, size = [5, 6, 7], sampling.repetition_context_size
    for _ in range(15):
        backend.rewind_to(0)
        text = written(backend, Paths(VOCAB, 3), prompt, 20)
        again, masks = Paths(VOCAB, 3), []
        for token in text:
            masks.append(again.allowed())
            again.taken.append(token)
        logits = np.where(np.stack(masks), text_logits(reference, prompt, text), -np.inf).astype(np.float32)
        padded = [prompt[0]] * size + prompt + text
        contexts = np.array([padded[len(prompt) + i : len(prompt) + i + size] for i in range(len(text))])
        evidence.add(marginal(logits, sampling, contexts), np.array(text))
    assert evidence.p_value > 1e-3


def test_what_is_interrupted_goes_on(model: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    backend, constraint, prompt = bound(model, None, num_draft_tokens=K), Paths(VOCAB, 5), [5, 6, 7, 8]
    expected = plain(model, Paths(VOCAB, 5), prompt, 20)
    backend.bind(constraint)
    text = [backend.prefill(prompt)]
    while len(text) < 8:
        text += backend.round(text[-1]).emitted
    with monkeypatch.context() as patch:
        patch.setattr(logit_model, "to_numpy", lambda logits: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            backend.round(text[-1])
    while len(text) < 20 and text[-1]:
        text += backend.round(text[-1]).emitted
    assert text[:20] == expected
