"""A text ends where its own logits stop being finite, in every way of decoding, and not before."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import LLAMA, write_base, write_checkpoint

from mtpd_mlx.decoding.open import open_decoder
from mtpd_mlx.decoding.tuning.plan import PLANS
from mtpd_mlx.model.base import Base
from mtpd_mlx.model.finite import marked
from mtpd_mlx.model.generate import generate_batch
from mtpd_mlx.model.heads import MTPHeads
from mtpd_mlx.model.load_save import load_checkpoint
from mtpd_mlx.model.runtime import mx
from mtpd_mlx.options.decode import DecodingConfig
from mtpd_mlx.speculative.finite import NO_TOKEN, NotFiniteError
from mtpd_mlx.speculative.loop import generate
from mtpd_mlx.speculative.sampling import Sampling

PROMPT, LENGTH = [5, 6, 7, 8], 24
WAYS = [("plain", DecodingConfig(), Sampling())]
WAYS += [(str(plan), DecodingConfig(plan=str(plan)), Sampling()) for plan in PLANS]
WAYS += [("exact", DecodingConfig(exact=True), Sampling()), ("sampled", DecodingConfig(plan="growing"), Sampling(temp=0.7))]
WAYS += [("sampled, fixed", DecodingConfig(plan="fixed"), Sampling(temp=0.7))]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finite")
    base = write_base(folder / "base", LLAMA | {"tie_word_embeddings": False}, scale=8.0)
    return write_checkpoint(folder / "heads", base, 3)


def loaded(checkpoint: Path) -> tuple[Base, MTPHeads]:
    base, heads, _ = load_checkpoint(checkpoint)
    return base, heads


def text_of(decoder: Any, prompt: list[int] = PROMPT) -> list[int]:
    decoder.rewind_to(0)
    return [token for chunk in generate(decoder, prompt, max_tokens=LENGTH) for token in chunk.tokens]


def poison(base: Base, token: int) -> None:
    """After this token the states are NaN."""
    weight = base.model.model.embed_tokens.weight
    base.model.model.embed_tokens.weight = mx.where((mx.arange(weight.shape[0]) == token)[:, None], float("nan"), weight)


@pytest.mark.parametrize(("name", "options", "sampling"), WAYS, ids=[w[0] for w in WAYS])
def test_the_tokens_before_it_are_those_of_the_sound_model(
    name: str, options: DecodingConfig, sampling: Sampling, checkpoint: Path
) -> None:
    drafts = 0 if name == "plain" else None
    seeded = Sampling(temp=sampling.temp, seed=3)
    sound = text_of(open_decoder(*loaded(checkpoint), options, num_draft_tokens=drafts, sampling=seeded))
    token = sound[9]
    place = sound.index(token)
    base, heads = loaded(checkpoint)
    poison(base, token)
    decoder = open_decoder(base, heads, options, num_draft_tokens=drafts, sampling=seeded)
    decoder.rewind_to(0)
    text: list[int] = []
    exact = len(PROMPT) + place + 1 if name == "plain" else r"\d+"  # a draft of it may come sooner, and masked NaN is NaN
    with pytest.raises(NotFiniteError, match=rf"not finite after {exact} tokens"):
        for chunk in generate(decoder, PROMPT, max_tokens=LENGTH):
            text += chunk.tokens
    assert text == sound[: len(text)] and len(text) <= place + 1
    other = [t for t in range(20, 90) if t != token][:4]  # and the decoder goes on with another text
    decoder.rewind_to(0)
    assert 0 <= decoder.prefill(other) < base.vocab_size


def test_rows_behind_a_refused_draft_are_not_looked_at(checkpoint: Path) -> None:
    """Heads that always draft a token that the text has not, and logits after it that are NaN."""
    base, heads = loaded(checkpoint)
    text = text_of(open_decoder(base, None))
    token = next(t for t in range(97) if t not in text and t not in PROMPT)
    heads.draft_among(mx.array([token], mx.int32))
    seen = []

    def broken(tokens: mx.array, logits: mx.array) -> mx.array:
        seen.append(int(tokens[-1].item()) == token)
        return mx.where(tokens[-1] == token, float("nan"), logits)

    decoder = open_decoder(base, heads, DecodingConfig(plan="growing"), logits_processors=[broken])
    assert text_of(decoder) == text and any(seen)


def test_marks() -> None:
    logits = mx.array([[0.0, 1.0], [float("nan"), 1.0], [-float("inf"), 0.0]])
    assert marked(mx.array([1, 1, 1], mx.uint32), logits).tolist() == [1, NO_TOKEN, 1]


def test_a_batch_ends_for_a_text_that_goes_on_and_not_for_one_that_has_ended(checkpoint: Path) -> None:
    base, _ = loaded(checkpoint)
    prompts = [PROMPT, [30, 31, 32]]
    first, second = generate_batch(base, prompts, LENGTH, frozenset())
    token = next(t for t in first[3:] if t not in second and t not in first[:3])
    place = first.index(token)
    poison(base, token)
    with pytest.raises(NotFiniteError, match=f"after {len(PROMPT) + place + 1} tokens") as error:
        generate_batch(base, prompts, LENGTH, frozenset())
    assert error.value.row == 0
    assert generate_batch(base, prompts, LENGTH, frozenset([token])) == [first[: place + 1], second]


@pytest.mark.parametrize("draft", [True, False])
def test_stock_mlx_lm_with_our_draft_model(draft: bool, checkpoint: Path) -> None:
    from mlx_lm.generate import generate_step, speculative_generate_step

    from mtpd_mlx.checkpoints.format import read_config
    from mtpd_mlx.decoding.mlx_lm_draft import with_heads
    from mtpd_mlx.model.base import load_base

    folder = read_config(checkpoint).base.id
    base = load_base(folder)
    poison(base, 40)
    model = with_heads(base.model, checkpoint)
    text: list[int] = []

    def run(prompt: list[int], steps: Callable[..., Any]) -> None:
        for token, *_ in steps:
            text.append(int(token))

    prompt = mx.array([5, 40, 7])
    with pytest.raises(NotFiniteError, match="not finite after"):
        if draft:
            run([], speculative_generate_step(prompt, model, model.make_draft_model(), num_draft_tokens=3, max_tokens=64))
        else:
            run([], generate_step(prompt, model, max_tokens=64))
    assert len(text) < 16


def test_logits_of_the_oracle(checkpoint: Path) -> None:
    from mtpd_mlx.measure.acceptance import teacher_force
    from mtpd_mlx.measure.step_model import MLXModel
    from mtpd_mlx.model.generate import Generation

    base, _ = loaded(checkpoint)
    poison(base, 9)
    assert np.isfinite(MLXModel(base, None).logits([1, 2, 3])).all()
    with pytest.raises(NotFiniteError, match="not finite after"):
        MLXModel(base, None).logits([1, 9, 3])
    sound, broken = Generation([1, 2], [3, 4, 5, 6]), Generation([3], [4, 9, 5])
    teacher_force(base, [sound])
    with pytest.raises(NotFiniteError, match="prompt 2: the base's logits are not finite after"):
        teacher_force(base, [sound, broken])
