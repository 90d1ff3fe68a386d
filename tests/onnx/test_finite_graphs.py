"""Marks of tokens whose logits are not finite, in the graphs and in what reads them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from helpers.finite import ROWS
from mtpd_onnx.export.export import export_checkpoint
from mtpd_onnx.graphs.finite import marked
from mtpd_onnx.manifest import read_manifest
from mtpd_onnx.runtime.batched import BatchedDecoder
from mtpd_onnx.runtime.open import open_folder
from mtpd_onnx.runtime.open_rows import open_rows
from mtpd_onnx.weights import parameters, tensors
from onnxscript import GraphBuilder
from tiny import LLAMA, write_base, write_checkpoint

from mtpd_mlx.model.runtime import mx
from mtpd_mlx.options.export import ExportOptions
from mtpd_mlx.speculative.finite import NO_TOKEN, NotFiniteError
from mtpd_mlx.speculative.loop import generate
from mtpd_mlx.speculative.sampling import Sampling

PROMPT, LENGTH = [5, 6, 7, 8], 20


@pytest.mark.parametrize("width", [4, 97, 4096, 50257])
def test_rows(width: int) -> None:
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 18}, name="marks")
    builder = GraphBuilder(graph)
    tokens = builder.input("tokens", ir.DataType.INT64, ["R"])
    logits = builder.input("logits", ir.DataType.FLOAT, ["R", "V"])
    out = marked(builder.op, tokens, logits)
    out.name, out.dtype, out.shape = "out", ir.DataType.INT64, ir.Shape(["R"])
    graph.outputs.append(out)
    model = ir.to_proto(ir.Model(graph, ir_version=10)).SerializeToString()
    rows = np.full((len(ROWS), width), -1.0, np.float32)
    for i, (row, finite) in enumerate(ROWS.values()):
        rows[i, [0, width // 3, width // 2, width - 1]] = row
        rows[i] = rows[i] if finite or np.isfinite(row).any() else row[0]
    got = ort.InferenceSession(model).run(None, {"tokens": np.arange(len(ROWS)), "logits": rows})[0]
    assert got.tolist() == [i if finite else NO_TOKEN for i, (_, finite) in enumerate(ROWS.values())]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("marks")
    write_base(folder / "base", LLAMA | {"tie_word_embeddings": False}, scale=8.0)
    export_checkpoint(write_checkpoint(folder / "heads", folder / "base", 3), folder / "sound")
    return folder


def text_of(backend: Any, text: list[int]) -> list[int]:
    backend.rewind_to(0)
    for chunk in generate(backend, PROMPT, max_tokens=LENGTH):
        text += chunk.tokens
    return text


@pytest.mark.parametrize("layout", ["fused", "split"])
@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("sampling", [None, Sampling(temp=0.7, seed=3)], ids=["greedy", "sampled"])
def test_the_tokens_before_it_are_those_of_the_sound_model(
    layout: str, plain: bool, sampling: Sampling | None, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if layout == "split" and sampling is not None:
        pytest.skip("the split layout decodes greedily")
    sound = text_of(open_folder(place / "sound", provider="cpu", plain=plain, sampling=sampling), [])
    token = sound[9]
    at = sound.index(token)
    weights = dict(mx.load(str(place / "base" / "model.safetensors")))
    embedding = np.array(weights["model.embed_tokens.weight"])
    embedding[token] = np.nan
    base = write_base(tmp_path / "base", LLAMA | {"tie_word_embeddings": False})
    mx.save_safetensors(str(base / "model.safetensors"), weights | {"model.embed_tokens.weight": mx.array(embedding)})
    monkeypatch.setattr(tensors, "check_finite", lambda name, array: None)
    monkeypatch.setattr(parameters, "check_fits", lambda name, array, dtype: None)
    export_checkpoint(write_checkpoint(tmp_path / "heads", base, 3), tmp_path / "out", ExportOptions(layout=layout))
    backend, text = open_folder(tmp_path / "out", provider="cpu", plain=plain, sampling=sampling), list[int]()
    with pytest.raises(NotFiniteError, match=f"not finite after {len(PROMPT) + at + 1} tokens"):
        text_of(backend, text)
    assert text == sound[: len(text)] and len(text) <= at + 1
    backend.rewind_to(0)
    assert 0 <= backend.prefill([t for t in range(20, 90) if t != token][:4]) < 97
    if layout == "fused" and not plain and sampling is None:
        batched = BatchedDecoder(open_rows(tmp_path / "out", 2, provider="cpu"))
        stops = [lambda token: True, lambda token: False]  # the first text has ended by then
        with pytest.raises(NotFiniteError, match=f"after {len(PROMPT) + at + 1} tokens") as error:
            batched.generate([PROMPT, PROMPT], LENGTH, stops=stops)
        assert error.value.row == 1


def test_a_folder_of_the_version_before_is_read_and_named(
    place: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    manifest = place / "sound" / "manifest.json"
    values = json.loads(manifest.read_text())
    assert values["format_version"] == 9
    sound = text_of(open_folder(place / "sound", provider="cpu"), [])
    try:
        manifest.write_text(json.dumps(values | {"format_version": 4}))
        with caplog.at_level("INFO"):
            assert text_of(open_folder(place / "sound", provider="cpu"), []) == sound
        assert read_manifest(place / "sound").format_version == 4
        assert "of an earlier version: logits that are not finite go unnoticed; export the checkpoint again" in caplog.text
    finally:
        manifest.write_text(json.dumps(values))
