"""CAR, AR, tau and repetition, each against a count by hand or a slow oracle."""

import json
import random
from itertools import cycle

import numpy as np
import pytest
from helpers.fakes import ScriptedModel, plain_text, scripted

from mtpd_mlx.speculative.loop import Chunk, generate
from mtpd_mlx.speculative.protocol import Round
from mtpd_mlx.speculative.rounds import StepBackend
from mtpd_mlx.speculative.stats import DecodeStats, acceptance_table, distinct_n, novel_positions, walk


def test_acceptance_table_by_hand():
    table = acceptance_table([0, 1, 3, 3], 3)
    assert table.car == [0.75, 0.5, 0.5]
    assert table.ar == pytest.approx([0.75, 2 / 3, 1.0])
    assert table.tau == pytest.approx(1 + np.mean([0, 1, 3, 3]))


def test_acceptance_table_without_rounds_or_acceptance():
    assert acceptance_table([], 2).car == [0.0, 0.0] and acceptance_table([], 2).tau == 1.0
    assert acceptance_table([0, 0], 2).ar == [0.0, 0.0]  # depth 2 was never reached
    with pytest.raises(ValueError, match=r"got 0\.\.3, expected 0\.\.2"):
        acceptance_table([0, 3], 2)


def test_walk_by_hand():
    matches = np.array([[1, 1], [0, 0], [0, 1], [0, 1], [1, 0], [1, 1]], dtype=bool)
    assert walk(matches) == [2, 0, 1]  # rows 0, 3, 4; row 3 has a match only behind a miss
    assert walk(np.zeros((0, 3), dtype=bool)) == []
    assert walk(np.zeros((4, 0), dtype=bool)) == [0] * 4


def test_walk_is_what_a_decoder_accepts():
    """Drafts of a teacher-forced table, replayed by the loop: the same counts, round for round."""
    for seed in range(30):
        rng = np.random.default_rng(seed)
        prompt, depth, text = [1, 2, 3], 3, rng.integers(1, 90, 40).tolist()
        matches = rng.random((len(text), depth)) < 0.7

        class Table(ScriptedModel):
            def draft(self, next_token, matches=matches, prompt=prompt):
                right = super().draft(next_token)
                row = matches[self.length - len(prompt)]
                return [d if ok else (d + 1) % 97 for d, ok in zip(right, row, strict=True)]

        backend, stats = StepBackend(Table(scripted(text, len(prompt)), num_drafts=depth)), DecodeStats(depth)
        for chunk in generate(backend, prompt, max_tokens=len(text)):
            stats.add(chunk)
        counts = walk(matches[: len(text) - depth])  # rows whose targets all lie inside the text
        assert counts == stats.accepted[: len(counts)] and 0 <= len(stats.accepted) - len(counts) <= depth


def test_distinct_and_novel_by_hand():
    tokens = [1, 2, 1, 2, 1, 3]
    assert distinct_n(tokens, 2) == 3 / 5
    assert novel_positions(tokens, 2).tolist() == [True, True, True, False, False, True]
    assert distinct_n([1, 2, 3], 4) == 1.0 and novel_positions([], 4).shape == (0,)
    assert distinct_n([7] * 20, 4) == pytest.approx(1 / 17)


def test_novel_positions_against_the_slow_oracle():
    rng = random.Random(0)
    for n in (1, 2, 4):
        tokens = [rng.randrange(3) for _ in range(60)]
        slow = [
            not any(tokens[j - n + 1 : j + 1] == tokens[i - n + 1 : i + 1] for j in range(n - 1, i)) for i in range(len(tokens))
        ]
        slow[: n - 1] = [True] * (n - 1)
        assert novel_positions(tokens, n).tolist() == slow
        assert distinct_n(tokens, n) == pytest.approx(sum(slow[n - 1 :]) / (len(tokens) - n + 1))


def test_decode_stats_by_hand():
    stats = DecodeStats(3)
    stats.add(Chunk([1], prompt_tokens=5, seconds=0.5))
    stats.add(Chunk([2, 3], round=Round([2, 3], 1, 3, 0.1, 0.3), seconds=0.5))
    stats.add(Chunk([4], round=Round([4, 5, 6, 7], 3, 3, 0.1, 0.3), seconds=0.5))  # cut after its first token
    stats.add(Chunk([8], round=Round([8], 0, 0, 0.0, 0.1), seconds=0.5))  # could not draft: apart
    stats.add(Chunk([9], finish_reason="length", seconds=0.5))
    assert stats.accepted == [1, 3] and stats.short_rounds == 1 and stats.plain_steps == 1
    assert stats.car == [1.0, 0.5, 0.5] and stats.ar == [1.0, 0.5, 1.0] and stats.tau == 3.0
    assert stats.chosen == {"heads 3": [2, 3], "plain": [2, 2]}
    values = stats.to_dict()
    assert values["tokens"] == 6 and values["rounds"] == 2
    assert values["tokens_per_second"] == pytest.approx(5 / 2.0)  # prefill's token and time are not decoding
    assert values["prompt_tokens_per_second"] == pytest.approx(10.0)
    assert values["tokens_per_pass"] == pytest.approx(5 / 4)
    assert values["draft_share"] == pytest.approx(0.1) and values["verify_share"] == pytest.approx(0.35)


def test_rounds_of_several_kinds_by_hand():
    stats = DecodeStats(4)
    for round_ in (Round([1, 2, 3], 2, 2), Round([4], 0, 2), Round([5, 6, 7, 8, 9], 4, 4), Round([1, 2], 1, 4)):
        stats.add(Chunk(round_.emitted, round=round_))
    stats.add(Chunk([1], round=Round([1], 0, 0, source="plain")))
    stats.add(Chunk([1, 2, 3], round=Round([1, 2, 3], 2, 8, source="lookup")))
    assert stats.ar == pytest.approx([3 / 4, 2 / 3, 1.0, 1.0])  # depth 3: one round of two reached it, and went on
    assert stats.car == pytest.approx([3 / 4, 1 / 2, 1 / 2, 1 / 2])
    assert stats.tau == 1 + 7 / 4  # of rounds with heads' drafts
    assert stats.plain_steps == 1 and stats.short_rounds == 0
    assert stats.tokens_per_pass == 15 / 6
    assert stats.to_dict()["chosen"] == {
        "heads 2": {"rounds": 2, "tokens": 4},
        "heads 4": {"rounds": 2, "tokens": 7},
        "lookup 8": {"rounds": 1, "tokens": 3},
        "plain": {"rounds": 1, "tokens": 1},
    }


def test_shares_are_unknown_where_the_backend_does_not_say():
    stats = DecodeStats(1)
    stats.add(Chunk([2, 3], round=Round([2, 3], 1, 1, 0.1, 0.3), seconds=0.5))
    stats.add(Chunk([2, 3], round=Round([2, 3], 1, 1), seconds=0.5))
    assert stats.to_dict()["draft_share"] is None and stats.to_dict()["verify_share"] is None


def test_an_empty_record_is_json():
    json.dumps(DecodeStats(4).to_dict(), allow_nan=False)


def test_stats_of_two_generations():
    stats = DecodeStats(4)
    for _ in range(2):
        backend = StepBackend(ScriptedModel(script=cycle([2])))
        tokens = []
        for chunk in generate(backend, [5, 6, 7], max_tokens=10):
            stats.add(chunk)
            tokens += chunk.tokens
        assert tokens == plain_text(backend.model.target, [5, 6, 7], 10)
    assert stats.accepted == [2] * 6 and stats.tokens == 20 and stats.prompts == 2 and stats.prompt_tokens == 6
    assert stats.decode_seconds >= stats.draft_seconds + stats.verify_seconds > 0
