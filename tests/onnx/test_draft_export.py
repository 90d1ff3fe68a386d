"""The exported draft head: MLX's drafts, guess for guess; what is stored; what the manifest says."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from helpers.precision import initializers
from mtpd_onnx.cli import main
from mtpd_onnx.export.export import export_checkpoint
from mtpd_onnx.manifest import read_manifest
from mtpd_onnx.runtime.fused import FusedBackend
from mtpd_onnx.runtime.open import open_folder
from tiny import FAMILIES, LLAMA, VOCAB, write_base, write_checkpoint, write_quantised

from mtpd_mlx.measure.step_model import MLXModel
from mtpd_mlx.model.base import load_base
from mtpd_mlx.model.load_save import flatten, load_checkpoint
from mtpd_mlx.model.runtime import mx
from mtpd_mlx.options.export import ExportOptions

WIDTH = LLAMA["hidden_size"]


def ids_of(size: int) -> list[int]:
    return sorted(np.random.default_rng(size).choice(VOCAB, size, replace=False).tolist())


def export(folder: Path, base: Path, ids: list[int] | None, source: str = "postnorm") -> Path:
    """A checkpoint in folder/heads, exported to folder/fused and folder/split."""
    checkpoint = write_checkpoint(folder / "heads", base, 3, source, noise=0.02, draft_tokens=ids)
    for layout in ("fused", "split"):
        export_checkpoint(checkpoint, folder / layout, ExportOptions(layout=layout))
    return checkpoint


def drafts_of(backend: Any, tokens: list[int], following: int) -> list[int]:
    """The guesses after `tokens` and x = following, from an empty cache."""
    backend.rewind_to(0)
    if isinstance(backend, FusedBackend):
        assert backend.prefill(tokens) == following
        return backend.drafts
    backend.model.verify(tokens)
    return backend.model.draft(following)


@pytest.mark.parametrize(
    ("family", "size", "source"),
    [
        ("llama-tied", 1, "postnorm"),
        ("llama-untied", 3, "prenorm"),
        ("llama-tied", 40, "prenorm"),
        ("llama-untied", 40, "postnorm"),
        ("llama-tied", VOCAB, "postnorm"),
    ],
)
def test_every_draft_is_that_of_mlx(family: str, size: int, source: str, tmp_path: Path) -> None:
    ids = ids_of(size)
    checkpoint = export(tmp_path, write_base(tmp_path / "base", FAMILIES[family], scale=2.0), ids, source)
    base, heads, _ = load_checkpoint(checkpoint)
    fused, split = (
        open_folder(tmp_path / name, provider="cpu", num_threads=1, fixed_rounds=True) for name in ("fused", "split")
    )
    rng, seen = np.random.default_rng(0), set()
    for length in (1, 2, 3, 5, 9, 20, 33):
        tokens = rng.integers(0, VOCAB, length).tolist()
        model = MLXModel(base, heads)
        following = model.prefill(tokens)
        ours = model.draft(following)
        assert drafts_of(fused, tokens, following) == ours
        assert drafts_of(split, tokens, following) == ours
        seen |= set(ours)
    assert seen <= set(ids) and len(seen) >= min(size, 3)


def test_whole_vocabulary_drafts_as_without_one(tmp_path: Path) -> None:
    base_folder = write_base(tmp_path / "base", scale=2.0)
    export(tmp_path / "all", base_folder, list(range(VOCAB)))
    export(tmp_path / "none", base_folder, None)
    for layout in ("fused", "split"):
        one, other = (
            open_folder(tmp_path / name / layout, provider="cpu", num_threads=1, fixed_rounds=True) for name in ("all", "none")
        )
        for prompt in ([9, 4, 7, 3], list(range(30))):
            token = one.prefill(prompt)
            assert other.prefill(prompt) == token
            for _ in range(12):
                ours, theirs = one.round(token), other.round(token)
                assert (ours.emitted, ours.accepted, ours.proposed) == (theirs.emitted, theirs.accepted, theirs.proposed)
                token = ours.emitted[-1]
            for backend in (one, other):
                backend.rewind_to(0)


@pytest.mark.parametrize(("bits", "tied"), [(None, True), (None, False), (4, False), (8, True)])
def test_rows_are_gathered_unpacked_and_stored_once(bits: int | None, tied: bool, tmp_path: Path) -> None:
    folder = write_base(tmp_path / "base", LLAMA | {"tie_word_embeddings": tied})
    if bits is not None:
        folder = write_quantised(tmp_path / "quantised", folder, bits)
    ids = ids_of(40)
    export(tmp_path, folder, ids)
    weights = flatten(load_base(str(folder), dequantize=True).model)
    rows = np.array(weights["model.embed_tokens.weight" if tied else "lm_head.weight"].astype(mx.float32))[ids]
    for file in (tmp_path / "fused" / "round.onnx", tmp_path / "split" / "mtp_heads.onnx"):
        stored = initializers(file)
        assert [n for n in stored if n.startswith("draft")] == ["draft_head.weight", "draft_tokens"]
        assert stored["draft_tokens"].dtype == np.int64 and stored["draft_tokens"].tolist() == ids
        np.testing.assert_allclose(stored["draft_head.weight"], rows, atol=1e-6)
    assert "lm_head.weight" not in initializers(tmp_path / "split" / "mtp_heads.onnx")


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Exports of one base: with/ a draft vocabulary, without/ one. No test changes them."""
    folder = tmp_path_factory.mktemp("both")
    base = write_base(folder / "base")
    export(folder / "with", base, ids_of(40))
    export(folder / "without", base, None)
    return folder


def test_only_the_rows_are_added_and_the_main_graphs_stay(both: Path) -> None:
    for layout, main_graph in (("fused", "plain.onnx"), ("split", "main.onnx")):
        sizes = []
        for name in ("with", "without"):
            sizes.append(read_manifest(both / name / layout).files["weights.bin"]["bytes"])
        assert 0 < sizes[0] - sizes[1] <= -(-40 * WIDTH * 4 // 4096) * 4096 + 4096
        one, other = (onnx.load(str(both / n / layout / main_graph), load_external_data=False) for n in ("with", "without"))
        assert [n.SerializeToString() for n in one.graph.node] == [n.SerializeToString() for n in other.graph.node]
        assert [t.name for t in one.graph.initializer] == [t.name for t in other.graph.initializer]


def test_info_shows_it_and_a_wrong_size_is_refused(both: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for name, expected in (("with", 40), ("without", None)):
        capsys.readouterr()
        assert main(["info", str(both / name / "fused")]) == 0
        assert json.loads(capsys.readouterr().out)["draft_vocab"] == expected
    file = Path(shutil.copytree(both / "with" / "fused", tmp_path / "fused")) / "manifest.json"
    good = json.loads(file.read_text())
    for wrong in (0, VOCAB + 1, True, "40", 40.0):
        file.write_text(json.dumps(good | {"draft_vocab": wrong}))
        assert main(["info", str(file.parent)]) == 1
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1 and "draft_vocab: got" in lines[0] and "expected 1..97 or null" in lines[0]


def test_fused_folder_drafts_with_a_draft_vocabulary_after_rewinds(tmp_path: Path) -> None:
    """Rounds, rewinds into their middle, and on: the next drafts are those of a fresh MLX model given the same tokens."""
    checkpoint = export(tmp_path, write_base(tmp_path / "base", scale=2.0), ids_of(40))
    base, heads, _ = load_checkpoint(checkpoint)
    fused = open_folder(tmp_path / "fused", provider="cpu", num_threads=1, fixed_rounds=True)
    assert isinstance(fused, FusedBackend)
    rng = np.random.default_rng(4)
    held = rng.integers(0, VOCAB, 8).tolist()
    token = fused.prefill(held)
    for _ in range(15):
        result = fused.round(token)
        held, token = [*held, token, *result.emitted[:-1]], result.emitted[-1]
        if rng.random() < 0.4:
            keep = int(rng.integers(4, len(held)))
            fused.rewind_to(keep)
            held, token = held[:keep], held[keep]
            continue
        fresh = MLXModel(base, heads)
        fresh.prefill(held)
        assert fused.drafts == fresh.draft(token)
