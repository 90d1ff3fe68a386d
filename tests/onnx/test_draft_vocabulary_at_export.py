"""Heads trained on all tokens, exported to draft among some: which ones, and that texts stay those of plain decoding."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from helpers.decode import decoded
from helpers.precision import SMALL, TEXT, initializers
from mtpd_onnx.cli import main
from mtpd_onnx.export.draft_vocabulary import choose_draft_tokens
from mtpd_onnx.export.export import export_checkpoint
from mtpd_onnx.runtime.fused import FusedBackend
from mtpd_onnx.runtime.open import open_folder
from tiny import VOCAB, write_base, write_checkpoint

from mtpd_mlx.options.export import ExportOptions
from mtpd_mlx.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base"), SMALL, scale=2.0)


@pytest.fixture(scope="module")
def checkpoint(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("heads") / "heads", base, 3, noise=0.02)


def write_rows(file: Path, texts: list[str]) -> Path:
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return file


@pytest.mark.parametrize(
    "options", [{}, {"draft_head_bits": 4, "group_size": 32}, {"precision": "int4"}, {"layout": "split"}], ids=str
)
def test_drafts_come_from_it_and_texts_do_not_change(options: dict, checkpoint: Path, tmp_path: Path) -> None:
    manifest = export_checkpoint(checkpoint, tmp_path / "out", ExportOptions(draft_vocab=20, **options))
    whole = export_checkpoint(checkpoint, tmp_path / "whole", ExportOptions(**options))
    assert (manifest.draft_vocab, whole.draft_vocab) == (20, None)
    fused, plain, other = (
        open_folder(tmp_path / name, provider="cpu", num_threads=1, plain=plain)
        for name, plain in (("out", False), ("out", True), ("whole", False))
    )
    for prompt in (TEXT[:7], TEXT[7:30]):
        text, accepted = decoded(fused, prompt, 60)
        assert text == decoded(plain, prompt, 60, plain=True)[0] == decoded(other, prompt, 60)[0]
        assert accepted
    if isinstance(fused, FusedBackend):
        assert set(fused.drafts) <= set(range(20))
        stored = initializers(tmp_path / "out" / "round.onnx")
        assert stored["draft_tokens"].tolist() == list(range(20))


def test_without_data_the_tokens_that_end_a_text_and_the_first_ones(base: Path) -> None:
    tokenizer = Tokenizer.from_folder(base)
    tokenizer.eos_token_ids = frozenset({3, 90})
    assert choose_draft_tokens(5, (), tokenizer, VOCAB).tolist() == [0, 1, 2, 3, 90]  # type: ignore[union-attr]
    assert choose_draft_tokens(VOCAB, (), tokenizer, VOCAB) is None


def test_the_most_frequent_tokens_of_all_data(base: Path, tmp_path: Path) -> None:
    first = write_rows(tmp_path / "a.jsonl", ["hello world", "hello"])
    (tmp_path / "b").mkdir()
    write_rows(tmp_path / "b" / "train.jsonl", ["low owl zz zz zz"])
    tokenizer = Tokenizer.from_folder(base)
    counts = Counter(i for text in ("hello world", "hello", "low owl zz zz zz") for i in tokenizer.encode(text))
    order = sorted(range(VOCAB), key=lambda i: (i not in tokenizer.eos_token_ids, -counts[i], i))
    for size in (1, 4, 12, 40):  # 40: more than occur
        chosen = choose_draft_tokens(size, (str(first), str(tmp_path / "b")), tokenizer, VOCAB)
        assert chosen is not None and chosen.tolist() == sorted(order[:size])
    assert order[1:3] != [1, 2]


def test_what_does_not_fit_is_refused_in_one_line(
    checkpoint: Path, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = write_checkpoint(tmp_path / "own", base, 1, draft_tokens=list(range(30)))
    for heads, options, words in (
        (checkpoint, ["--draft-vocab", str(VOCAB + 1)], f"--draft-vocab: got {VOCAB + 1}, expected 1..{VOCAB}"),
        (checkpoint, ["--draft-vocab", "0"], "draft-vocab: got 0"),
        (checkpoint, ["--draft-data", "x.jsonl"], "--draft-data: expected --draft-vocab"),
        (checkpoint, ["--draft-vocab", "9", "--draft-data", str(tmp_path / "no.jsonl")], "no.jsonl: no such file"),
        (own, ["--draft-vocab", "9"], "got 9, the heads have a draft vocabulary of 30 already"),
    ):
        assert main(["export", str(heads), "--out", str(tmp_path / "out"), *options]) != 0
        said = capsys.readouterr().err.strip().splitlines()
        assert words in said[-1] and not (tmp_path / "out").exists()


def test_a_vocabulary_of_the_heads_own_stays(base: Path, tmp_path: Path) -> None:
    ids = [1, 5, 6, 40, 70]
    own = write_checkpoint(tmp_path / "own", base, 1, draft_tokens=ids)
    assert export_checkpoint(own, tmp_path / "out").draft_vocab == 5
    np.testing.assert_array_equal(initializers(tmp_path / "out" / "round.onnx")["draft_tokens"], ids)
