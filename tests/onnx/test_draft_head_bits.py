"""An output head of few bits for the drafts: other drafts perhaps, never another text."""

from pathlib import Path

import numpy as np
import pytest
from helpers.precision import initializers, unpacked
from mtpd_onnx.cli import main
from mtpd_onnx.export.export import export_checkpoint
from mtpd_onnx.runtime.open import open_folder
from tiny import FAMILIES, VOCAB, write_base, write_checkpoint

from mtpd_mlx.options.export import ExportOptions
from mtpd_mlx.speculative.loop import generate

PROMPTS = [[9, 4, 7], list(range(30))]
OPTIONS = {"group_size": 32}


def checkpoint_in(folder: Path, family: str = "llama-tied", drafts: list[int] | None = None) -> Path:
    base = write_base(folder / "base", FAMILIES[family], scale=2.0)
    return write_checkpoint(folder / "heads", base, 3, noise=0.02, draft_tokens=drafts)


def decode(folder: Path, plain: bool = False) -> tuple[list[list[int]], int]:
    """(texts, accepted drafts)"""
    backend, texts, accepted = open_folder(folder, provider="cpu", plain=plain, num_threads=1), [], 0
    for prompt in PROMPTS:
        backend.rewind_to(0)
        chunks = list(generate(backend, prompt, max_tokens=40))
        texts.append([t for c in chunks for t in c.tokens])
        accepted += sum(c.round.accepted for c in chunks if c.round is not None)
    return texts, accepted


@pytest.mark.parametrize(
    ("family", "bits", "draft_vocab"),
    [("llama-tied", 4, None), ("qwen2", 8, None), ("llama-tied", 8, 40), ("qwen2", 4, 40)],
)
def test_the_text_is_that_of_plain_decoding(family: str, bits: int, draft_vocab: int | None, tmp_path: Path) -> None:
    drafts = None if draft_vocab is None else sorted(np.random.default_rng(1).choice(VOCAB, 40, replace=False).tolist())
    checkpoint = checkpoint_in(tmp_path, family, drafts)
    export_checkpoint(checkpoint, tmp_path / "whole")
    manifest = export_checkpoint(checkpoint, tmp_path / "few", ExportOptions(draft_head_bits=bits, **OPTIONS))
    texts, accepted = decode(tmp_path / "few")
    assert texts == decode(tmp_path / "few", plain=True)[0] == decode(tmp_path / "whole")[0]
    assert accepted > 0 or draft_vocab is not None
    stored = initializers(tmp_path / "few" / "round.onnx")
    head = unpacked(stored, "draft_head")
    account = manifest.record["weights"]["draft_head"]
    whole = stored.get("lm_head.weight", stored["model.embed_tokens.weight"])
    rows = whole if drafts is None else whole[drafts]
    error = np.abs(head - rows).max()
    assert account["rounded"] == 1 and error == pytest.approx(account["largest_error"], rel=1e-3)
    assert 0 < error <= 0.6 * (rows.max() - rows.min()) / (2**bits - 1)
    assert manifest.record["weights"]["base"]["largest_error"] == 0


def test_integers_of_the_base_are_not_touched(tmp_path: Path) -> None:
    """An int8 folder whose drafts take 4 bits: the main head keeps its own 8."""
    checkpoint = checkpoint_in(tmp_path)
    export_checkpoint(checkpoint, tmp_path / "int8", ExportOptions(precision="int8", **OPTIONS))
    export_checkpoint(checkpoint, tmp_path / "both", ExportOptions(precision="int8", draft_head_bits=4, **OPTIONS))
    one, two = (initializers(tmp_path / name / "round.onnx") for name in ("int8", "both"))
    assert one.keys() < two.keys()
    assert all(np.array_equal(one[name], two[name]) for name in one)
    assert decode(tmp_path / "int8")[0] == decode(tmp_path / "both")[0]


@pytest.mark.parametrize(
    ("more", "said"),
    [(["--layout", "split"], "the split layout has standard operators only"), (["--group-size", "128"], "is not a multiple")],
)
def test_what_cannot_be_is_refused(more: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--out", str(tmp_path / "out"), "--draft-head-bits", "4", *more]
    assert main(["export", str(checkpoint_in(tmp_path)), *options]) == 1
    assert said in capsys.readouterr().err and not (tmp_path / "out").exists()
