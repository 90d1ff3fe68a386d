"""Recurrent state that is taken back, against its oracle: restore a snapshot and run the model again."""

import os
from typing import Any

import numpy as np
import pytest
from helpers.hybrids import HYBRIDS, write_hybrid

from mtpd_mlx.decoding.rewind import Marks, begin, reach_of, trim_to
from mtpd_mlx.families.dims import HELD
from mtpd_mlx.model.base import Base, load_base
from mtpd_mlx.model.recurrent.cache import RecurrentCache
from mtpd_mlx.model.recurrent.pairs import Stateless
from mtpd_mlx.model.runtime import mx

CLOSE = 5e-4  # of logits around 10: passes of other widths round otherwise, without rewinds too


@pytest.fixture(scope="module", params=sorted(HYBRIDS))
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Base:
    return load_base(str(write_hybrid(tmp_path_factory.mktemp("hybrid"), request.param)))


def logits(base: Base, tokens: list[int], caches: list[Any]) -> np.ndarray:
    return np.array(base.logits(base.norm(base.trunk(mx.array([tokens]), caches)))[0])


class Snapshots:
    """The oracle: caches of every length that was passed by, copied by running the whole text anew."""

    def __init__(self, base: Base):
        self.base = base

    def logits(self, text: list[int], tokens: list[int]) -> np.ndarray:
        """Logits [n, V] of `tokens` behind `text`, over caches that have seen nothing else."""
        caches = self.base.make_cache()
        if text:
            mx.eval(self.base.trunk(mx.array([text]), caches))
        return logits(self.base, tokens, caches)


def fuzz(base: Base, rounds: int, seed: int, most: int = 150) -> int:
    """Passes of random widths, of which random numbers of positions stay, and now and then a longer way back. The number of
    positions that were taken back."""
    rng, oracle = np.random.default_rng(seed), Snapshots(base)
    caches, text, back, furthest = base.make_cache(), list[int](), 0, 0
    for turn in range(rounds):
        width = int(rng.integers(1, 18))
        tokens = rng.integers(0, base.vocab_size, width).tolist()
        transaction = begin(caches, width)
        got = logits(base, tokens, caches)
        if turn % 7 == 0:
            np.testing.assert_allclose(got, oracle.logits(text, tokens), rtol=0, atol=CLOSE)
        furthest = max(furthest, len(text) + width)
        kept = int(rng.integers(0, width + 1))
        transaction.abort() if kept == 0 else transaction.commit(kept)
        text, back = text + tokens[:kept], back + width - kept
        if rng.random() < 0.2:
            length = int(rng.integers(max(reach_of(caches), len(text) - HELD), len(text) + 1))
            trim_to(caches, length)
            text, back = text[:length], back + len(text) - length
        assert {cache.offset for cache in caches if not isinstance(cache, Stateless)} == {len(text)}
        assert reach_of(caches) <= max(0, furthest - HELD)
        if len(text) > most:
            caches, text, furthest = base.make_cache(), [], 0
    np.testing.assert_allclose(logits(base, [1, 2, 3], caches), oracle.logits(text, [1, 2, 3]), rtol=0, atol=CLOSE)
    return back


def test_rounds_of_every_width_go_back_to_every_length(base: Base) -> None:
    assert fuzz(base, 300, seed=0) > 1000


@pytest.mark.slow
def test_thousands_of_rounds(base: Base) -> None:
    """2,500 with every run of the whole suite; MTPD_FUZZ_ROUNDS=10000 for as many as the log speaks of."""
    rounds = int(os.environ.get("MTPD_FUZZ_ROUNDS", "2500"))
    assert fuzz(base, rounds, seed=1, most=600) > 4 * rounds


def test_what_stays_has_the_bits_of_a_pass_that_never_went_on(base: Base) -> None:
    """State and window, where the pass had the same width; and a rewind leaves nothing behind: twice is as good as once."""
    for keep in range(6):
        one, two = base.make_cache(), base.make_cache()
        for caches in (one, two):
            mx.eval(base.trunk(mx.array([[3, 1, 4, 1, 5]]), caches))
        for more in ([9, 2, 6, 5, 3, 5], [9, 2, 6, 5, 3, 5][:keep] + [8] * (6 - keep)):
            mx.eval(base.trunk(mx.array([more]), one))
            trim_to(one, 5 + keep)
        mx.eval(base.trunk(mx.array([[9, 2, 6, 5, 3, 5]]), two))
        trim_to(two, 5 + keep)
        for a, b in zip(one, two, strict=True):
            if isinstance(a, RecurrentCache):
                assert all(mx.array_equal(x, y).item() for x, y in zip(a.state, b.state, strict=True))


def test_a_long_pass_can_be_taken_back_at_its_end_alone(base: Base) -> None:
    caches, oracle = base.make_cache(), Snapshots(base)
    text = np.random.default_rng(3).integers(0, base.vocab_size, 3 * HELD).tolist()
    logits(base, text, caches)
    assert reach_of(caches) == 2 * HELD
    with pytest.raises(ValueError, match=rf"cannot go back to {2 * HELD - 1} positions, expected {2 * HELD}\.\.{3 * HELD}"):
        trim_to([c for c in caches if isinstance(c, RecurrentCache)], 2 * HELD - 1)
    for length in (3 * HELD - 1, 2 * HELD + 5, 2 * HELD):
        trim_to(caches, length)
        np.testing.assert_allclose(logits(base, [7, 8], caches), oracle.logits(text[:length], [7, 8]), rtol=0, atol=CLOSE)
        trim_to(caches, length)


def test_marks_go_back_to_any_length(base: Base) -> None:
    """To the last mark before it, or to the beginning; what lies between is said."""
    caches, marks, oracle = base.make_cache(), Marks(), Snapshots(base)
    text = np.random.default_rng(4).integers(0, base.vocab_size, 400).tolist()
    for end in (150, 300, 400):
        logits(base, text[caches[0].offset : end], caches)
        marks.add(caches)
    for length, expected in ((350, 350), (301, 300), (300, 300), (299, 150), (150, 150), (149, 0), (0, 0)):
        assert marks.go_back(caches, length) == expected
        np.testing.assert_allclose(logits(base, [7], caches), oracle.logits(text[:expected], [7]), rtol=0, atol=CLOSE)
        trim_to(caches, expected)
        if expected < length:
            logits(base, text[expected:length], caches)


def test_wrong_widths_are_said(base: Base) -> None:
    caches = base.make_cache()
    for width in (0, HELD + 1):
        with pytest.raises(ValueError, match=rf"got a pass of {width} positions, expected 1\.\.{HELD}"):
            begin(caches, width)
    transaction = begin(caches, 4)
    logits(base, [1, 2, 3, 4], caches)
    with pytest.raises(ValueError, match=r"commit: got 5 positions, expected 0\.\.4"):
        transaction.commit(5)
