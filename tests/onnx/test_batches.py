"""Texts decoded together are what they are alone: ragged prompts, short ones, full caches, early ends, every family."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from mtpd_onnx.export.export import export_checkpoint
from mtpd_onnx.manifest import read_manifest
from mtpd_onnx.runtime import limits
from mtpd_onnx.runtime.batched import BatchedDecoder
from mtpd_onnx.runtime.open import open_folder
from mtpd_onnx.runtime.open_rows import open_rows, why_not
from tiny import FAMILIES, VOCAB, write_base, write_checkpoint

from mtpd_mlx.options.export import ExportOptions
from mtpd_mlx.speculative.loop import generate


def export(folder: Path, family: str = "llama-tied", **options: object) -> Path:
    base = write_base(folder / "base", FAMILIES[family], scale=2.0)
    checkpoint = write_checkpoint(folder / "heads", base, 3, noise=0.02, **options)  # type: ignore[arg-type]
    export_checkpoint(checkpoint, folder / "onnx", ExportOptions(capacity=128))
    return folder / "onnx"


def alone(folder: Path, prompts: list[list[int]], count: int, eos: frozenset[int] = frozenset()) -> list[tuple]:
    backend, found = open_folder(folder, provider="cpu", num_threads=1), []
    for prompt in prompts:
        backend.rewind_to(0)
        chunks = list(generate(backend, prompt, max_tokens=count, eos_token_ids=eos))
        accepted = [(c.round.accepted, c.round.proposed) for c in chunks if c.round is not None]
        found.append(([t for c in chunks for t in c.tokens], accepted, chunks[-1].finish_reason))
    return found


def together(
    folder: Path, prompts: list[list[int]], count: int, eos: frozenset[int] = frozenset(), size: int = 0, drafts: int | None = 3
) -> list[tuple]:
    rows = open_rows(folder, size or len(prompts), provider="cpu", num_threads=1, num_draft_tokens=drafts)
    texts = BatchedDecoder(rows, drafts).generate(prompts, count, eos)
    rows.check()
    return [
        (t.tokens, [(c.round.accepted, c.round.proposed) for c, _ in t.chunks if c.round is not None], t.finish_reason)
        for t in texts
    ]


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


@pytest.mark.parametrize("drafts", [0, 1, 2, None])
def test_any_number_of_drafts_is_the_same_text(drafts: int | None, folder: Path) -> None:
    """None: chosen by how many texts there are; texts that end leave fewer."""
    expected = [(text, reason) for text, _, reason in alone(folder, PROMPTS, 60)]
    got = together(folder, PROMPTS, 60, drafts=drafts)
    assert [(text, reason) for text, _, reason in got] == expected
    assert drafts is None or max(proposed for _, rounds, _ in got for _, proposed in rounds) == drafts


@pytest.mark.parametrize("longest", [126, 127])
def test_prompts_that_leave_no_room_for_the_lines_of_others(longest: int, folder: Path) -> None:
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
    decoder = BatchedDecoder(open_rows(folder, 4, provider="cpu", num_threads=1))
    for prompts in (PROMPTS[:2], PROMPTS[2:5]):
        assert [t.tokens for t in decoder.generate(prompts, 20)] == [text for text, *_ in alone(folder, prompts, 20)]


def test_prompts_in_chunks(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = alone(folder, PROMPTS, 20)
    monkeypatch.setattr(limits, "PREFILL_CHUNK", 7)
    assert together(folder, PROMPTS, 20) == expected


def test_a_base_without_heads(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", FAMILIES["llama-tied"], scale=2.0)
    export_checkpoint(base, tmp_path / "onnx", ExportOptions(capacity=64))
    backend, expected = open_folder(tmp_path / "onnx", provider="cpu", num_threads=1), []
    for prompt in PROMPTS[:3]:
        backend.rewind_to(0)
        expected.append([t for c in generate(backend, prompt, max_tokens=30) for t in c.tokens])
    assert [text for text, *_ in together(tmp_path / "onnx", PROMPTS[:3], 30, drafts=None)] == expected


def test_draft_vocabulary_and_prenorm(tmp_path: Path) -> None:
    ids = np.arange(0, VOCAB, 2)
    folder = export(tmp_path, hidden_source="prenorm", draft_tokens=ids)
    assert together(folder, PROMPTS[:3], 30) == alone(folder, PROMPTS[:3], 30)


def test_what_cannot_be_decoded_side_by_side_is_said(folder: Path) -> None:
    manifest = read_manifest(folder)
    assert why_not(manifest, "1.32.0") is None and why_not(manifest, "2.0.1") is None
    assert "onnxruntime 1.31.1 cannot decode texts of different lengths together, 1.32 and" in str(why_not(manifest, "1.31.1"))
    for change, said in (
        ({"format_version": 7}, "an earlier version"),
        ({"layout": "split"}, "--layout fused"),
        ({"precision": "bf16", "activations": "bf16"}, "--precision fp16"),
    ):
        assert said in str(why_not(replace(manifest, **change), "1.32.0"))  # type: ignore[arg-type]


def test_wrong_sizes_are_said(folder: Path) -> None:
    rows = open_rows(folder, 1, provider="cpu")
    decoder = BatchedDecoder(rows)
    with pytest.raises(ValueError, match=r"got 2 prompts, expected 1\.\.1"):
        decoder.generate(PROMPTS[:2], 5)
    with pytest.raises(ValueError, match=r"prompt: got 128 tokens, expected 1\.\.127"):
        decoder.generate([[1] * 128], 5)
    with pytest.raises(ValueError, match=r"--num-draft-tokens: got 4, expected 0\.\.3"):
        open_rows(folder, 1, provider="cpu", num_draft_tokens=4)
