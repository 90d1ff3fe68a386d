"""Lookup's index against a rescan of the whole text; what it believes of its matches; its drafts."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtpd_mlx.speculative.lookup import EXTENDED, LONGEST, PRIOR, SHORTEST, Credibility, Lookup, Match, NgramIndex, class_of


def rescan(tokens: list[int], shortest: int = SHORTEST, longest: int = LONGEST) -> Match | None:
    """The oracle: every earlier place is compared with the end of the text."""
    for n in range(longest, shortest - 1, -1):
        for follows in range(len(tokens) - 1, n - 1, -1):
            if tokens[follows - n : follows] == tokens[len(tokens) - n :]:
                length = n
                while n == longest and length < min(EXTENDED, follows) and tokens[follows - length - 1] == tokens[-length - 1]:
                    length += 1
                return Match(follows, length)
    return None


TEXTS = st.lists(st.integers(0, 2), max_size=80) | st.lists(st.integers(0, 9), max_size=80)


@given(TEXTS, st.integers(1, 3), st.integers(0, 6))
def test_the_index_finds_what_a_rescan_finds(tokens: list[int], shortest: int, more: int):
    index = NgramIndex(shortest, shortest + more)
    for i, token in enumerate(tokens):
        index.append(token)
        assert index.match == rescan(tokens[: i + 1], shortest, shortest + more)


@given(TEXTS, st.integers(0, 80), TEXTS)
def test_after_a_rewind_the_index_is_that_of_the_text(tokens: list[int], length: int, others: list[int]):
    index = NgramIndex()
    for token in tokens:
        index.append(token)
    index.rewind(length)
    for token in others:
        index.append(token)
    text = [*tokens[:length], *others]
    assert index.tokens == text
    assert index.match == rescan(text)


def test_drafts_go_on_with_the_period_of_the_text():
    index = NgramIndex()
    for token in [5, 1, 2, 3, 1, 2, 3]:
        index.append(token)
    assert index.match == Match(4, 3)
    assert index.following(8) == [1, 2, 3, 1, 2, 3, 1, 2]


def test_no_match_no_drafts():
    lookup = Lookup()
    lookup.begin([1, 2, 3], 4)
    assert lookup.chain() == [] and lookup.drafts(4) == []


def test_n_grams_that_cannot_be_are_refused():
    for shortest, longest in ((0, 4), (3, 2)):
        with pytest.raises(ValueError, match="1 <= shortest <= longest"):
            NgramIndex(shortest, longest)


def test_a_match_is_trusted_as_often_as_it_was_right():
    rng, believed = np.random.default_rng(0), Credibility()
    for _ in range(400):
        believed.saw(4, bool(rng.random() < 0.9))
    assert 0.8 < believed.next_right(4) < 0.98
    assert believed.next_right(2) == PRIOR[0]  # nothing was seen of it
    for _ in range(400):
        believed.saw(4, False)
    assert believed.next_right(4) < 0.1


def test_a_chain_is_the_product_of_growing_matches():
    believed = Credibility()
    rates = [believed.next_right(2 + j) for j in range(5)]
    assert believed.chain(2, 5) == pytest.approx(np.cumprod(rates).tolist())
    assert class_of(1) == 0 and class_of(7) == class_of(6) and class_of(99) == len(PRIOR) - 1


def test_the_prompt_is_indexed_and_not_judged():
    lookup, other = Lookup(), Lookup()
    lookup.begin([1, 2, 3] * 10, 1)
    other.begin([7, 8, 9], 5)
    assert lookup._credibility.next_right(2) == other._credibility.next_right(2)
    assert lookup.drafts(3) == [2, 3, 1]


@given(TEXTS, st.integers(0, 80), TEXTS, st.integers(0, 9))
def test_a_text_begun_anew_is_as_if_it_had_never_been_another(tokens: list[int], keep: int, others: list[int], token: int):
    lookup, fresh = Lookup(), Lookup()
    lookup.begin(tokens, 3)
    text = [*tokens[:keep], *others]
    lookup.begin(text, token)
    fresh.begin(text, token)
    assert lookup.ends_with(len(text), token) and not lookup.ends_with(len(text) + 1, token)
    assert lookup.drafts(8) == fresh.drafts(8)


def test_a_copied_text_is_drafted_from_its_source_and_soon_trusted():
    """A text that quotes its prompt: once it runs, most tokens are drafted, many at a time."""
    rng = np.random.default_rng(1)
    source = rng.integers(0, 5000, 400).tolist()
    lookup = Lookup()
    lookup.begin([*source, 1, 2], source[50])
    right = long = 0
    for token in source[51:350]:
        right += lookup.drafts(1) == [token]
        chain = lookup.chain()
        long += bool(chain) and chain[7] > 0.5
        lookup.add(token)
    assert right >= 297 and long >= 270
