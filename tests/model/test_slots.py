"""write_texts: the texts of one prompt after the other, however many are written at a time, and few rows computed in vain."""

from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from mtpd_mlx.data.own_text import drawer
from mtpd_mlx.model import slots
from mtpd_mlx.model.base import Base, load_base
from mtpd_mlx.model.generate import generate_batch
from mtpd_mlx.model.runtime import mx
from mtpd_mlx.model.slots import Draw, argmax, numbers_of, write_texts
from mtpd_mlx.options.distill import DistillConfig
from mtpd_mlx.speculative.finite import NotFiniteError

RNG = np.random.default_rng(5)
PROMPTS = [RNG.integers(2, 97, n).tolist() for n in (3, 1, 8, 2, 5, 5, 13, 1, 4, 6, 2, 9)]
SAMPLED = drawer(DistillConfig(temp=1.2))


@pytest.fixture(scope="module")
def base(tiny_base: Path) -> Base:
    return load_base(str(tiny_base))


def texts(base: Base, count: int, most: int, eos: frozenset[int], draw: Draw = argmax, seed: int = 0) -> list[list[int]]:
    found: dict[int, list[int]] = {}
    for ended in write_texts(base, PROMPTS, most, eos, slots=count, draw=draw, seed=seed):
        assert not found.keys() & {place for place, _ in ended}
        found |= dict(ended)
    return [found[i] for i in range(len(PROMPTS))]


@pytest.fixture(scope="module")
def eos(base: Base) -> frozenset[int]:
    """Two tokens that end texts at as many places as two can."""
    free = [generate_batch(base, [p], 24, frozenset())[0] for p in PROMPTS]

    def places(pair: tuple[int, ...]) -> int:
        return len({next((i for i, token in enumerate(text) if token in pair), 24) for text in free})

    return frozenset(max(combinations(sorted({t for text in free for t in text}), 2), key=places))


@pytest.mark.parametrize("count", [1, 2, 5, 12, 40])
def test_greedy_texts_are_those_of_one_prompt_after_the_other(count: int, base: Base, eos: frozenset[int]) -> None:
    alone = [generate_batch(base, [p], 24, eos)[0] for p in PROMPTS]
    lengths = [len(text) for text in alone]
    assert max(lengths) == 24 and len(set(lengths)) >= 3
    assert texts(base, count, 24, eos) == alone


@pytest.mark.parametrize("most", [1, 2, 3])
def test_short_texts(most: int, base: Base) -> None:
    assert texts(base, 5, most, frozenset()) == [generate_batch(base, [p], most, frozenset())[0] for p in PROMPTS]


def test_prompts_are_read_in_parts(base: Base, eos: frozenset[int], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = texts(base, 12, 24, eos)
    monkeypatch.setattr(slots, "PREFILL_TOKENS", 6)
    assert texts(base, 12, 24, eos) == whole


def test_samples_depend_on_seed_and_number_alone(base: Base, eos: frozenset[int]) -> None:
    first = texts(base, 12, 24, eos, SAMPLED)
    assert texts(base, 1, 24, eos, SAMPLED) == texts(base, 5, 24, eos, SAMPLED) == first
    assert texts(base, 5, 24, eos, SAMPLED, seed=1) != first
    some = [7, 2, 10]
    ended = write_texts(base, [PROMPTS[i] for i in some], 24, eos, slots=2, draw=SAMPLED, numbers=some)
    assert {some[place]: text for part in ended for place, text in part} == {i: first[i] for i in some}


def test_numbers_are_uniform_and_each_text_has_its_own() -> None:
    drawn = np.stack([numbers_of(3, row, 50) for row in range(200)])
    assert drawn.dtype == np.float32 and drawn.min() >= 0 and drawn.max() < 1 and np.unique(drawn).size > 9900
    shares = np.histogram(drawn, 10, (0, 1))[0] / drawn.size
    assert np.abs(shares - 0.1).max() < 5 * np.sqrt(0.09 / drawn.size)


@pytest.mark.parametrize(
    "cfg",
    [
        DistillConfig(temp=1.5),
        DistillConfig(temp=0.7, top_p=0.8),
        DistillConfig(temp=1.0, top_k=4),
        DistillConfig(temp=1.3, min_p=0.1),
    ],
)
def test_sampling_follows_mlx_lm_s_distribution(cfg: DistillConfig) -> None:
    """The share of the numbers that give each token, against 40,000 draws of mlx_lm's own sampler."""
    from mlx_lm.sample_utils import make_sampler

    logits = mx.random.normal((1, 12), key=mx.random.key(4)) * 2
    count = 40_000
    numbers = mx.array(((np.arange(count) + 0.5) / count).astype(np.float32))
    ours = np.bincount(np.array(drawer(cfg)(mx.repeat(logits, count, axis=0), numbers)), minlength=12) / count
    mx.random.seed(0)
    sampler = make_sampler(cfg.temp, top_p=cfg.top_p, top_k=cfg.top_k, min_p=cfg.min_p)
    rows = mx.repeat(logits - mx.logsumexp(logits, axis=-1, keepdims=True), count, axis=0)
    theirs = np.bincount(np.array(sampler(rows)), minlength=12) / count
    assert (ours > 0).sum() > 1 and ((ours > 0) == (theirs > 0)).all()
    assert (np.abs(ours - theirs) < 5 * np.sqrt(ours * (1 - ours) / count) + 1e-4).all()


def test_a_number_at_either_end_gives_a_token_that_may_be_drawn() -> None:
    logits = mx.array([[-mx.inf, 1.0, 0.0, -mx.inf]] * 2)
    largest = np.float32(1 - 2**-24)
    assert np.array(drawer(DistillConfig(temp=1.0))(logits, mx.array(np.array([0, largest])))).tolist() == [1, 2]


def rows_computed(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    count, trunk = 0, Base.trunk

    def spy(base: Base, tokens: mx.array, cache: object = None) -> mx.array:
        nonlocal count
        count += tokens.shape[0] if tokens.shape[1] == 1 else 0
        return trunk(base, tokens, cache)

    monkeypatch.setattr(Base, "trunk", spy)
    yield 0
    yield count


def test_free_slots_are_used_again(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    """60 texts, three of four end after about a tenth of the longest: batches that wait for their longest text compute several
    rows a token."""
    prompts = PROMPTS * 5
    limits = [3, 5, 40, 4] * 15
    counter = rows_computed(monkeypatch)
    next(counter)

    class Writer(slots._Writer):  # ends texts by their place, in place of an EOS
        def _record(self, texts: list, seen: mx.array) -> list:
            done = super()._record(texts, seen)
            for text in texts:
                if not text.ended and len(text.tokens) >= limits[text.place]:
                    text.ended = True
                    done.append((text.place, text.tokens))
            return done

    monkeypatch.setattr(slots, "_Writer", Writer)
    ended = [pair for part in write_texts(base, prompts, 64, frozenset(), slots=8) for pair in part]
    assert sorted(place for place, _ in ended) == list(range(60))
    assert [len(text) for _, text in sorted(ended)] == limits
    assert next(counter) < 1.6 * sum(limits)


def test_logits_that_are_not_finite_name_their_prompt(base: Base) -> None:
    def broken(logits: mx.array, numbers: mx.array) -> mx.array:
        return mx.argmax(logits, axis=-1)

    norm = base.model.model.norm
    weight, norm.weight = norm.weight, norm.weight * float("nan")
    try:
        with pytest.raises(NotFiniteError, match="after 1 token:") as refused:
            list(write_texts(base, PROMPTS, 4, frozenset(), slots=1, draw=broken))
    finally:
        norm.weight = weight
    assert len(PROMPTS[refused.value.row]) == 1
