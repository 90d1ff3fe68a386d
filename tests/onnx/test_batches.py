"""Texts decoded together are what they are alone: ragged prompts, short ones, full caches, early ends, every family."""

from pathlib import Path

import numpy as np
import pytest
from mtpd_onnx.export.export import export_checkpoint
from mtpd_onnx.runtime import limits
from mtpd_onnx.runtime.batched import check_batches
from mtpd_onnx.runtime.open import open_batched, open_folder
from tiny import FAMILIES, VOCAB, write_base, write_checkpoint

from mtpd_mlx.options.export import ExportOptions
from mtpd_mlx.speculative.loop import generate


def export(folder: Path, family: str = "llama-tied", **options: object) -> Path:
    base = write_base(folder / "base", FAMILIES[family], scale=2.0)
    checkpoint = write_checkpoint(folder / "heads", base, 3, noise=0.02, **options)  # type: ignore[arg-type]
    export_checkpoint(checkpoint, folder / "onnx", ExportOptions(capacity=128))
    return folder / "onnx"


def alone(folder: Path, prompts: list[list[int]], count: int, eos: frozenset[int] = frozenset()) -> list[tuple]:
    backend, found = open_folder(folder, provider="cpu", num_threads=1, fixed_rounds=True), []
    for prompt in prompts:
        backend.rewind_to(0)
        chunks = list(generate(backend, prompt, max_tokens=count, eos_token_ids=eos))
        accepted = [c.round.accepted for c in chunks if c.round is not None and c.round.proposed]
        short = sum(c.round is not None and not c.round.proposed for c in chunks)
        steps = sum(c.round is None for c in chunks[1:])
        found.append(([t for c in chunks for t in c.tokens], accepted, (short, steps), chunks[-1].finish_reason))
    return found


def together(
    folder: Path, prompts: list[list[int]], count: int, eos: frozenset[int] = frozenset(), size: int = 0
) -> list[tuple]:
    texts = open_batched(folder, size or len(prompts), provider="cpu", num_threads=1).generate(prompts, count, eos)
    return [(t.tokens, t.accepted, (t.short_rounds, t.plain_steps), t.finish_reason) for t in texts]


PROMPTS = [list(range(5, 25)), [9], [7, 8], list(range(90, 40, -1)), [1, 2, 3, 4], list(range(10, 80))]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(family: str, tmp_path: Path) -> None:
    folder = export(tmp_path, family)
    assert together(folder, PROMPTS[:4], 40) == alone(folder, PROMPTS[:4], 40)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(tmp_path_factory.mktemp("batches"))


def test_ragged_prompts_until_the_caches_are_full(folder: Path) -> None:
    expected = alone(folder, PROMPTS, 200)
    assert {reason for *_, reason in expected} == {"context"}
    assert together(folder, PROMPTS, 200) == expected


@pytest.mark.parametrize("longest", [126, 127])
def test_prompts_that_leave_no_room_beside_texts_that_rest(longest: int, folder: Path) -> None:
    """A text that rests is padded as far as the longest prompt, in the heads' caches too."""
    prompts = [[5] * longest, [7, 8, 9]]
    assert together(folder, prompts, 30, size=4) == alone(folder, prompts, 30)


def test_texts_rest_in_a_cache_of_one_round(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", FAMILIES["llama-tied"], scale=2.0)
    heads = write_checkpoint(tmp_path / "heads", base, 3, noise=0.02)
    export_checkpoint(heads, tmp_path / "onnx", ExportOptions(capacity=5))
    prompts = [[5], [7, 8, 9, 10], [1, 2, 3]]
    assert together(tmp_path / "onnx", prompts, 9) == alone(tmp_path / "onnx", prompts, 9)


def test_texts_that_end_early_rest_while_others_go_on(folder: Path) -> None:
    tokens = [text for text, *_ in alone(folder, PROMPTS, 30)]
    eos = frozenset({tokens[0][4], tokens[3][0]})
    expected = alone(folder, PROMPTS, 30, eos)
    assert {reason for *_, reason in expected} == {"stop", "length"}
    assert together(folder, PROMPTS, 30, eos) == expected


def test_fewer_prompts_than_places_and_a_second_batch(folder: Path) -> None:
    decoder = open_batched(folder, 4, provider="cpu", num_threads=1)
    for prompts in (PROMPTS[:2], PROMPTS[2:5]):
        assert [t.tokens for t in decoder.generate(prompts, 20)] == [text for text, *_ in alone(folder, prompts, 20)]


def test_prompts_in_chunks(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = alone(folder, PROMPTS, 20)
    monkeypatch.setattr(limits, "PREFILL_CHUNK", 7)
    assert together(folder, PROMPTS, 20) == expected


def test_draft_vocabulary_and_prenorm(tmp_path: Path) -> None:
    ids = np.arange(0, VOCAB, 2)
    folder = export(tmp_path, hidden_source="prenorm", draft_tokens=ids)
    assert together(folder, PROMPTS[:3], 30) == alone(folder, PROMPTS[:3], 30)


def test_an_older_onnxruntime_is_refused() -> None:
    with pytest.raises(ValueError, match=r"onnxruntime 1\.31\.1 cannot decode texts of different lengths together, 1\.32 and"):
        check_batches("1.31.1")
    check_batches("1.32.0")


def test_wrong_sizes_are_said(folder: Path) -> None:
    with pytest.raises(ValueError, match="--batch-size: got 0"):
        open_batched(folder, 0)
    decoder = open_batched(folder, 1, provider="cpu")
    with pytest.raises(ValueError, match=r"got 2 prompts, expected 1\.\.1"):
        decoder.generate(PROMPTS[:2], 5)
    with pytest.raises(ValueError, match=r"prompt: got 128 tokens, expected 1\.\.127"):
        decoder.generate([[1] * 128], 5)
