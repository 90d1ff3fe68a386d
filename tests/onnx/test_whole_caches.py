"""Texts side by side over whole caches, as on CUDA: computed in fp32 on a CPU here, where each is what it is alone."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from mtpd_onnx.export.export import export_checkpoint
from mtpd_onnx.graphs import batch as graphs
from mtpd_onnx.graphs.whole_caches import Whole
from mtpd_onnx.manifest import read_manifest
from mtpd_onnx.runtime import packing
from mtpd_onnx.runtime.batched import BatchedDecoder
from mtpd_onnx.runtime.open import open_folder
from mtpd_onnx.runtime.open_rows import open_rows, why_not
from mtpd_onnx.runtime.packing import Shape
from onnxscript import GraphBuilder
from tiny import FAMILIES, write_base, write_checkpoint

from mtpd_mlx.options.export import ExportOptions
from mtpd_mlx.speculative.batch import Turn
from mtpd_mlx.speculative.loop import generate
from mtpd_mlx.speculative.sampling import Sampling

PROMPTS = [list(range(5, 25)), [9], [7, 8], list(range(90, 40, -1)), [1, 2, 3, 4], list(range(10, 80))]


def export(folder: Path, monkeypatch: pytest.MonkeyPatch, family: str = "llama-tied", **options: object) -> Path:
    monkeypatch.setattr(graphs, "WHOLE_CACHES", (ir.DataType.FLOAT,))
    monkeypatch.setattr(packing, "REACH", 16)
    base = write_base(folder / "base", FAMILIES[family], scale=2.0)
    checkpoint = write_checkpoint(folder / "heads", base, 3, noise=0.02, **options)  # type: ignore[arg-type]
    export_checkpoint(checkpoint, folder / "onnx", ExportOptions(capacity=128))
    assert read_manifest(folder / "onnx").whole
    return folder / "onnx"


def alone(folder: Path, prompts: list[list[int]], count: int) -> list[list[int]]:
    backend, found = open_folder(folder, provider="cpu", num_threads=1, plain=True), []
    for prompt in prompts:
        backend.rewind_to(0)
        found.append([t for chunk in generate(backend, prompt, max_tokens=count) for t in chunk.tokens])
    return found


def together(folder: Path, prompts: list[list[int]], count: int, drafts: int | None) -> list[list[int]]:
    rows = open_rows(folder, len(prompts), provider="cpu", num_threads=1, num_draft_tokens=drafts)
    texts = BatchedDecoder(rows, drafts).generate(prompts, count)
    rows.check()
    return [text.tokens for text in texts]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = export(tmp_path, monkeypatch, family)
    assert together(folder, PROMPTS[:4], 30, 3) == alone(folder, PROMPTS[:4], 30)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        return export(tmp_path_factory.mktemp("whole"), patch)


@pytest.mark.parametrize("drafts", [0, 2, None])
def test_until_the_caches_are_full(drafts: int | None, folder: Path) -> None:
    """Lines that rest, lengths that cross the steps of what is looked at, rows without room for the longest line's."""
    assert together(folder, PROMPTS, 200, drafts) == alone(folder, PROMPTS, 200)


def test_prompts_in_pieces_beside_others(folder: Path) -> None:
    rows = open_rows(folder, 3, provider="cpu", num_threads=1)
    expected = alone(folder, PROMPTS[-1:] + PROMPTS[:1], 20)
    long, short = rows.join(Sampling()), rows.join(Sampling())
    texts = {short: [rows.prefill(short, PROMPTS[0])]}
    for start in range(0, len(PROMPTS[-1]), 23):
        after = rows.prefill(long, PROMPTS[-1][start : start + 23])
        texts[short] += rows.round([Turn(short, texts[short][-1], 2)])[0].emitted
    texts[long] = [after]
    while min(map(len, texts.values())) < 20:
        turns = [Turn(row, text[-1], 3) for row, text in texts.items()]
        for turn, result in zip(turns, rows.round(turns), strict=True):
            texts[turn.row] += result.emitted
    assert [texts[long][:20], texts[short][:20]] == expected


@pytest.mark.parametrize("window", [None, 5])
def test_masks(window: int | None) -> None:
    """Row s of a line that begins at `first` sees positions up to first + s, of these the last `window`."""
    made = _computed(Whole.mask, window, np.array([[0, 1, 2], [3, 3, 3]]), np.array([4, 9]), 12)
    for line, first in enumerate((4, 9)):
        for s in range(3):
            seen = [p for p in range(12) if p <= first + s and (window is None or p > first + s - window)]
            assert np.flatnonzero(made[line, 0, s] == 0).tolist() == seen


def _computed(what: Any, window: int | None, rows: np.ndarray, first: np.ndarray, reach: int) -> np.ndarray:
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 23, "com.microsoft": 1}, name="masks")
    builder = GraphBuilder(graph)
    inputs = [builder.input(n, ir.DataType.INT64, shape) for n, shape in SIZES.items()]
    whole = Whole(builder.op, ir.DataType.FLOAT, *inputs)
    mask = what(whole, window)
    mask.name, mask.dtype, mask.shape = "mask", ir.DataType.FLOAT, ir.Shape([None, 1, None, None])
    graph.outputs.append(mask)
    session = onnxruntime.InferenceSession(ir.to_proto(ir.Model(graph, ir_version=10)).SerializeToString())
    places = np.zeros((4, 2), np.int64)
    return session.run(None, dict(zip(SIZES, (rows, places, first, np.array([reach])), strict=True)))[0]


SIZES = {"rows": ["B", "S"], "places": ["T", 2], "first": ["B"], "reach": [1]}


def test_every_onnxruntime_can(folder: Path) -> None:
    manifest = read_manifest(folder)
    assert why_not(manifest, "1.31.1") is None and why_not(manifest, "1.24.0") is None
    on_cuda = replace(manifest, precision="fp16", activations="fp16")
    assert why_not(on_cuda, "1.31.1") is None
    assert "an earlier version" in str(why_not(replace(on_cuda, io={}), "1.31.1"))


def test_what_is_looked_at_comes_in_steps() -> None:
    shape = Shape(3, 97, 64, np.float32, 300, True)
    assert [shape.reach(end)[0] for end in (1, 256, 257, 300)] == [256, 256, 300, 300]
    assert shape.computed(1, 7) == 1 and Shape(3, 97, 64, np.float32, 300).computed(1, 7) == 2
