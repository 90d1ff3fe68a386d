"""Biases and penalties on logits: with drafts the text is that of plain decoding, one token after the other."""

from collections import Counter

import numpy as np
import pytest
from helpers.bound import PROMPT, VOCAB, HashedLogits, Paths, Shuffled, masked_marginal, opened, written

from mtpd_mlx.speculative.drafting import FixedDrafting
from mtpd_mlx.speculative.sampling import Sampling
from mtpd_mlx.speculative.significance import Evidence
from mtpd_mlx.speculative.weighed import Weighed

BIAS = {3: 2.0, 5: -100.0, 7: 1.5}


def weighed(seed: int | None = None) -> Weighed:
    return Weighed(VOCAB, {0}, BIAS, 0.5, 1.25, None if seed is None else Paths(VOCAB, seed))


def plain(model: HashedLogits, count: int, seed: int | None) -> list[int]:
    """The oracle, straight from the definition."""
    text, grammar = list[int](), None if seed is None else Paths(VOCAB, seed)
    while len(text) < count and not (text and text[-1] == 0):
        logits = model.after([*PROMPT, *text]).astype(np.float64)
        for token, bias in BIAS.items():
            logits[token] += bias
        for token, times in Counter(text).items():
            logits[token] -= 0.5 + 1.25 * times
        if grammar is not None:
            logits[~grammar.allowed()] = -np.inf
        text.append(int(logits.argmax()))
        if grammar is not None:
            grammar.taken.append(text[-1])
    return text


@pytest.mark.parametrize("grammar", [None, 4], ids=["free", "bound"])
@pytest.mark.parametrize("seed", range(4))
def test_greedy_text_is_the_plain_one(seed: int, grammar: int | None) -> None:
    expected = plain(HashedLogits(VOCAB, seed=seed), 40, grammar)
    for drafting in (FixedDrafting(0), FixedDrafting(3), Shuffled(seed)):
        for right in (0.0, 0.6, 1.0):
            assert written(opened(drafting, weighed(grammar), seed=seed, right=right), 40) == expected
    assert 5 not in expected or grammar is not None


def test_the_weights_change_the_text() -> None:
    free = Weighed(VOCAB, {0}, {})
    assert written(opened(FixedDrafting(3), free, seed=1), 20) != plain(HashedLogits(VOCAB, seed=1), 20, None)


class Moved(HashedLogits):
    """Logits of a text behind PROMPT as `weighed` moves them, one by one."""

    def after(self, tokens: list[int]) -> np.ndarray:
        answer = weighed()
        for token in tokens[len(PROMPT) :]:
            answer.take(token)
        return super().after(tokens) + answer.weights()


@pytest.mark.parametrize("drafts", [0, 3])
def test_sampled_texts_follow_the_weighed_distribution(drafts: int) -> None:
    sampling, evidence = Sampling(temp=0.9, seed=2), Evidence()
    backend = opened(FixedDrafting(0) if drafts == 0 else Shuffled(1), weighed(), sampling, seed=6, right=0.5)
    for _ in range(120):
        backend.rewind_to(0)
        backend.bind(weighed())
        text = written(backend, 12)
        evidence.add(masked_marginal(Moved(VOCAB, seed=6), Free(), PROMPT, text, sampling), np.array(text))
    assert evidence.p_value > 1e-3


class Free(Paths):
    def __init__(self) -> None:
        super().__init__(VOCAB)

    def allowed(self) -> np.ndarray:
        return np.ones(VOCAB, bool)


def test_tokens_that_are_taken_back_do_not_count() -> None:
    answer = weighed()
    before = answer.weights()
    for token in (3, 3, 7):
        assert answer.take(token)
    assert answer.weights()[3] == pytest.approx(2.0 - 0.5 - 2 * 1.25)
    answer.back(3)
    assert (answer.weights() == before).all()
