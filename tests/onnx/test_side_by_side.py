"""Rows of an OnnxBatch: whoever joins, leaves or goes back, each text is what it is alone; sampled ones in distribution."""

import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mtpd_onnx.export.export import export_checkpoint
from mtpd_onnx.manifest import read_manifest
from mtpd_onnx.runtime import open_rows as opening
from mtpd_onnx.runtime.batch import OnnxBatch
from mtpd_onnx.runtime.memory import rows_that_fit
from mtpd_onnx.runtime.open import open_folder
from mtpd_onnx.runtime.open_rows import open_rows
from tiny import FAMILIES, write_base, write_checkpoint

from mtpd_mlx.options.export import ExportOptions
from mtpd_mlx.speculative.batch import Turn
from mtpd_mlx.speculative.loop import generate
from mtpd_mlx.speculative.sampling import Sampling, probabilities
from mtpd_mlx.speculative.significance import Evidence

PROMPTS = [list(range(5, 25)), [9], [7, 8], list(range(90, 40, -1)), [1, 2, 3, 4], list(range(10, 80)), [30] * 9]
WARM = Sampling(temp=0.8, top_p=0.9)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("rows")
    base = write_base(place / "base", FAMILIES["llama-tied"], scale=2.0)
    heads = write_checkpoint(place / "heads", base, 3, noise=0.02)
    export_checkpoint(heads, place / "onnx", ExportOptions(capacity=128))
    return place / "onnx"


def opened(folder: Path, most: int = 6, **options: object) -> OnnxBatch:
    return open_rows(folder, most, provider="cpu", num_threads=1, **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def plain(folder: Path) -> list[list[int]]:
    """The greedy texts, 100 tokens at most."""
    backend, texts = open_folder(folder, provider="cpu", num_threads=1, plain=True), []
    for prompt in PROMPTS:
        backend.rewind_to(0)
        texts.append([t for c in generate(backend, prompt, max_tokens=100) for t in c.tokens])
    return texts


@pytest.mark.parametrize("seed", range(3))
def test_rows_that_join_leave_and_go_back(seed: int, folder: Path, plain: list[list[int]]) -> None:
    """A walk over everything a scheduler may do; every text is held against plain decoding after every step."""
    rng, rows, texts = random.Random(seed), opened(folder, 5), dict[int, tuple[int, list[int]]]()

    def right(row: int) -> None:
        which, tokens = texts[row]
        assert tokens[: len(plain[which])] == plain[which][: len(tokens)]
        assert rows.length(row) == min(len(PROMPTS[which]) + len(tokens) - 1, rows.capacity)

    for _ in range(120):
        what = rng.random()
        free = [row for row, (which, _) in texts.items() if rows.length(row) < rows.capacity]
        if (what < 0.25 or not texts) and len(texts) < rows.max_rows:
            which, row = rng.randrange(len(PROMPTS)), rows.join(Sampling(seed=rng.choice([None, 3])))
            texts[row] = which, [prefilled(rows, row, PROMPTS[which], rng)]
        elif what < 0.33 and texts:
            row = rng.choice(list(texts))
            del texts[row]
            rows.leave(row)
        elif what < 0.43 and texts:
            row = rng.choice(list(texts))
            which, tokens = texts[row]
            if len(tokens) > 1 and rows.length(row) < rows.capacity:
                kept = rng.randrange(1, len(tokens))
                rows.rewind_to(row, len(PROMPTS[which]) + kept - 1)
                texts[row] = which, tokens[:kept]
        elif what < 0.5 and texts:  # another text takes the row over, with what it has in common
            row, which = rng.choice(list(texts)), rng.randrange(len(PROMPTS))
            held = [*PROMPTS[texts[row][0]], *texts[row][1]][: rows.length(row)]
            common = next((i for i, (a, b) in enumerate(zip(held, PROMPTS[which], strict=False)) if a != b), 10**9)
            common = min(common, len(held), len(PROMPTS[which]) - 1)
            assert rows.restart(row, Sampling(), common) == common == rows.length(row)
            texts[row] = which, [prefilled(rows, row, PROMPTS[which][common:], rng)]
        elif what < 0.6 and free:
            row = rng.choice(free)
            texts[row] = texts[row][0], texts[row][1] + rows.alone(row).round(texts[row][1][-1]).emitted
            right(row)
        elif free:
            chosen = rng.sample(free, rng.randrange(1, len(free) + 1))
            turns = [Turn(row, texts[row][1][-1], rng.choice([0, 1, 2, 3, None])) for row in chosen]
            for turn, done in zip(turns, rows.round(turns), strict=True):
                assert done.proposed <= (15 if turn.num_draft_tokens is None else turn.num_draft_tokens)
                texts[turn.row][1].extend(done.emitted)
                right(turn.row)
        rows.check()


def prefilled(rows: OnnxBatch, row: int, prompt: list[int], rng: random.Random) -> int:
    cut = rng.randrange(len(prompt))
    if cut:
        rows.prefill(row, prompt[:cut])
    return rows.prefill(row, prompt[cut:])


def test_logits_are_the_same_bits_alone_and_among_others(folder: Path) -> None:
    """States of the base, whatever is decoded beside: that is why texts cannot part at ties."""
    lone, rows = opened(folder, 1, num_draft_tokens=0), opened(folder, 6)
    states = []
    for batch, company in ((lone, False), (rows, True)):
        row = batch.join(Sampling())
        token = batch.prefill(row, PROMPTS[0])
        others = []
        if company:
            for prompt in PROMPTS[1:6]:
                other = batch.join(WARM if len(prompt) == 2 else Sampling())
                others.append([other, batch.prefill(other, prompt)])
        for _ in range(20):
            turns = [Turn(row, token, 0), *(Turn(other, last, 2) for other, last in others)]
            first, *rest = batch.round(turns)
            token = first.emitted[-1]
            for each, done in zip(others, rest, strict=True):
                each[1] = done.emitted[-1]
        states.append(batch.alone(row)._hidden[: batch.length(row)].copy())
    assert np.array_equal(*states)


def test_a_seeded_text_does_not_depend_on_its_company(folder: Path) -> None:
    seeded = [Sampling(temp=0.9, seed=5), Sampling(temp=0.7, top_p=0.8, repetition_penalty=1.2, seed=6)]
    rows, alone = opened(folder), []
    for sampling, prompt in zip(seeded, PROMPTS, strict=False):
        row = rows.join(sampling)
        alone.append([t for c in generate(rows.alone(row), prompt, max_tokens=30) for t in c.tokens])
        rows.leave(row)
    assert alone[0] != alone[1]
    joined = [rows.join(sampling) for sampling in (*seeded, WARM, Sampling())]
    tokens = [[rows.prefill(row, prompt)] for row, prompt in zip(joined, PROMPTS, strict=False)]
    while any(len(text) < 30 for text in tokens[:2]):
        turns = [Turn(row, text[-1], None if i < 2 else 3) for i, (row, text) in enumerate(zip(joined, tokens, strict=True))]
        for text, done in zip(tokens, rows.round(turns), strict=True):
            text += done.emitted
    assert [text[:30] for text in tokens[:2]] == alone


@pytest.mark.parametrize("drafts", [0, 3])
def test_sampled_rows_follow_the_distribution(drafts: int, folder: Path) -> None:
    """Second and third tokens, of rows of two settings beside greedy ones, against the model's own probabilities."""
    settings, prompt = [WARM, Sampling(temp=1.2, top_k=8, min_p=0.05)], [7, 8, 9]
    rows, drawn = opened(folder, 8), [Counter[tuple[int, int]](), Counter[tuple[int, int]]()]
    joined = [rows.join(settings[i % 2] if i < 6 else Sampling()) for i in range(8)]
    for row in joined:
        rows.prefill(row, prompt)
    for _ in range(250):
        texts: list[list[int]] = [[] for _ in joined]
        while any(len(text) < 2 for text in texts):
            open_texts = [i for i, text in enumerate(texts) if len(text) < 2]
            done = rows.round([Turn(joined[i], ([3] + texts[i])[-1], drafts) for i in open_texts])
            for i, each in zip(open_texts, done, strict=True):
                texts[i] += each.emitted
        for i, row in enumerate(joined):
            if i < 6:
                drawn[i % 2][texts[i][0], texts[i][1]] += 1
            rows.restart(row, settings[i % 2] if i < 6 else Sampling(), len(prompt))
    model = open_folder(folder, provider="cpu", num_threads=1, plain=True)
    for sampling, counts in zip(settings, drawn, strict=True):
        assert counts.total() == 750
        first, test = distribution(model, [*prompt, 3], sampling), Evidence()
        for (a, b), count in counts.items():
            assert first[a] > 0
            second = distribution(model, [*prompt, 3, a], sampling)
            for p, token in ((first, a), (second, b)):
                test.add(np.repeat(p[None], count, 0), np.full(count, token))
        assert test.p_value > 1e-3


def distribution(model: Any, tokens: list[int], sampling: Sampling) -> np.ndarray:
    model.rewind_to(0)
    return probabilities(model.logits(tokens)[-1:], sampling)[0]


def test_a_saved_text_goes_on_in_another_row(folder: Path, plain: list[list[int]]) -> None:
    rows = opened(folder)
    first, other = rows.join(Sampling()), rows.join(Sampling())
    token = rows.prefill(first, PROMPTS[5])
    saved = rows.save(first)
    assert saved is not None and saved.tokens == PROMPTS[5]
    rows.leave(first)
    assert rows.load(other, saved, 40) == 40 == rows.length(other)
    assert rows.prefill(other, PROMPTS[5][40:]) == token
    text = [token]
    while len(text) < 30:
        (done,) = rows.round([Turn(other, text[-1], 3)])
        text += done.emitted
    assert text[:30] == plain[5][:30]
    seeded = rows.join(Sampling(temp=1.0, seed=1))
    assert rows.load(seeded, saved, 40) == 0
    rows.check()


def test_a_row_with_numbers_that_are_not_finite_harms_no_other(folder: Path, plain: list[list[int]]) -> None:
    rows = opened(folder)
    good, bad = rows.join(Sampling()), rows.join(Sampling())
    token = rows.prefill(good, PROMPTS[0])
    other = rows.prefill(bad, PROMPTS[3])
    rows._session.arrays["past_key_values.1.value"][bad, :, 3] = np.nan
    first, second = rows.round([Turn(good, token, 2), Turn(bad, other, 2)])
    assert second.emitted[-1] == -1 and [token, *first.emitted] == plain[0][: 1 + len(first.emitted)]


def test_lost_positions_and_wrong_turns_are_found(folder: Path) -> None:
    rows = opened(folder, 2)
    row = rows.join(Sampling())
    rows.prefill(row, PROMPTS[0])
    rows.check()
    rows._session.arrays["past_key_values.0.key"][row, :, 7] = 0
    with pytest.raises(RuntimeError, match="row 0: a position below 20 was never written"):
        rows.check()
    with pytest.raises(ValueError, match=r"got row 1, expected one of \[0\]"):
        rows.round([Turn(1, 3, 0)])
    rows.join(Sampling())
    with pytest.raises(ValueError, match="2 rows are taken"):
        rows.join(Sampling())


def test_rows_that_memory_holds(folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    manifest = read_manifest(folder)
    one, two = (
        opening.check_memory.__globals__["needed_bytes"](folder, manifest, "cpu", plain=False, sampled=True, batch_size=n)
        for n in (1, 2)
    )
    monkeypatch.setitem(rows_that_fit.__globals__, "available_bytes", lambda provider: one + 7 * (two - one))
    assert rows_that_fit(folder, manifest, "cpu", 20) == 4 and rows_that_fit(folder, manifest, "cpu", 2) == 2
    rows = opened(folder, 6, resting=2)
    assert (rows.max_rows, rows.max_together) == (4, 2) and "memory holds the caches of 4 texts, not of 8" in caplog.text
