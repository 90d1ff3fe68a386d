"""Bases with recurrent layers in ONNX graphs: the text of plain decoding after rounds, rewinds and joins of every kind."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from helpers.decode import decoded, text
from helpers.hybrids import write_hybrid
from helpers.schedules import OnDevice, Scheduled
from mtpd_onnx.export.export import export_checkpoint
from mtpd_onnx.manifest import read_manifest
from mtpd_onnx.runtime.open import open_folder
from mtpd_onnx.runtime.open_device import open_device
from mtpd_onnx.runtime.open_rows import open_rows
from mtpd_onnx.runtime.plain import PlainBackend
from mtpd_onnx.runtime.split import SplitModel
from test_operators import CUDA_OPERATORS
from tiny import VOCAB, write_checkpoint, write_quantised

from mtpd_mlx.measure.step_model import MLXModel
from mtpd_mlx.model.base import load_base
from mtpd_mlx.options.export import ExportOptions
from mtpd_mlx.speculative.batch import Turn
from mtpd_mlx.speculative.sampling import Sampling

# The others go the ways of "delta", with other weights and another rule.
KINDS = ["conv", "delta", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("joined", "mamba"))]
PROMPTS = [[5], [9, 4], [6, 7, 8], list(range(30)), list(range(90, 40, -1))]
TEXT = np.random.default_rng(0).integers(0, VOCAB, 60).tolist()


@pytest.fixture(scope="module", params=KINDS)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp(request.param)
    return write_checkpoint(place / "heads", write_hybrid(place / "base", request.param), 3, noise=0.05)


@pytest.fixture(scope="module")
def folder(checkpoint: Path) -> Path:
    export_checkpoint(checkpoint, checkpoint.parent / "fused", ExportOptions(capacity=160))
    return checkpoint.parent / "fused"


def opened(folder: Path, plain: bool = False, **how: Any) -> Any:
    return open_folder(folder, provider="cpu", num_threads=1, plain=plain, **how)


def test_logits_are_those_of_mlx(checkpoint: Path, folder: Path) -> None:
    export_checkpoint(checkpoint, checkpoint.parent / "split", ExportOptions(layout="split"))
    plain, split = opened(folder, plain=True), opened(checkpoint.parent / "split")
    assert isinstance(plain, PlainBackend) and isinstance(split.model, SplitModel)
    expected = MLXModel(load_base(str(checkpoint.parent / "base")), None).logits(TEXT)
    np.testing.assert_allclose(plain.logits(TEXT), expected, atol=1e-4)
    rows = [split.model.logits(part) for part in (TEXT[:1], TEXT[1:40], TEXT[40:])]
    np.testing.assert_allclose(np.concatenate(rows), expected, atol=1e-4)
    plain.rewind_to(20)
    np.testing.assert_allclose(plain.logits(TEXT[20:]), expected[20:], atol=1e-4)


@pytest.mark.parametrize("fixed_rounds", [False, True])
def test_rounds_are_plain_decoding(folder: Path, fixed_rounds: bool) -> None:
    rounds, plain, seen = opened(folder, fixed_rounds=fixed_rounds), opened(folder, plain=True), set[int]()
    for prompt in PROMPTS:
        tokens, accepted = decoded(rounds, prompt, 60)
        assert tokens == text(plain, prompt, 60)
        seen |= set(accepted)
    assert len(seen) > 1


@pytest.mark.parametrize("actions", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_going_back_anywhere_is_a_fresh_start(folder: Path, actions: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prefills, steps, rounds of right and wrong drafts and rewinds of every length, in the cheapest chunks too."""
    monkeypatch.setattr("mtpd_onnx.runtime.limits.PREFILL_CHUNK", 7)
    backend, plain = opened(folder, choose=True), opened(folder, plain=True)
    backend.drafting = Scheduled(1, 3, VOCAB)
    rng, held, following = np.random.default_rng(4), list[int](), 0
    for _ in range(actions):
        action = rng.integers(0, 4) if held else 0
        if action == 0 and len(held) < 100:
            new = rng.integers(0, VOCAB, rng.integers(1, 20)).tolist()
            following = backend.prefill(new)
            held += new
        elif action == 1 and len(held) < 130:
            held.append(following)
            following = backend.step(following)
        elif action == 2 and len(held) < 130:
            result = backend.round(following)
            held += [following, *result.emitted[:-1]]
            following = result.emitted[-1]
        else:
            least = max(0, len(held) - 12) if rng.random() < 0.7 else 0
            keep = int(rng.integers(least, len(held) + 1))
            following = held[keep] if keep < len(held) else following
            backend.rewind_to(keep)
            del held[keep:]
        assert backend.length == len(held)
        if held and following != -1 and rng.random() < 0.2:
            plain.rewind_to(0)
            logits = plain.logits([*held, following])[-1]
            assert backend.step(following) == int(logits.argmax())
            backend.rewind_to(len(held))


def test_texts_go_on_where_they_were_saved(folder: Path) -> None:
    first, other, plain = opened(folder, choose=True), opened(folder, choose=True), opened(folder, plain=True)
    first.prefill(TEXT)
    saved = first.save()
    if read_manifest(folder).reach is not None:
        assert saved is None
        return
    for length in (1, 2, 3, 30, 59):
        text(other, PROMPTS[3], 30)
        other.load(saved, length)
        plain.rewind_to(0)
        assert other.prefill([7]) == plain.prefill([*TEXT[:length], 7])


def test_texts_side_by_side(folder: Path) -> None:
    """Rows that join, leave and are taken by others; each writes what it writes alone."""
    if read_manifest(folder).reach is not None:
        with pytest.raises(ValueError, match="texts with recurrent state are decoded one at a time"):
            open_rows(folder, 3, provider="cpu", num_threads=1)
        return
    batch, plain = open_rows(folder, 3, provider="cpu", num_threads=1, measure=False), opened(folder, plain=True)
    rng, rows, finished = np.random.default_rng(2), dict[int, tuple[list[int], list[int]]](), 0
    while finished < 8:
        if len(rows) < 3 and (not rows or rng.random() < 0.5):
            prompt, row = PROMPTS[rng.integers(0, len(PROMPTS))], batch.join(Sampling())
            rows[row] = prompt, [batch.prefill(row, prompt)]
        turns = [Turn(row, said[-1], int(rng.integers(0, 4))) for row, (_, said) in rows.items()]
        for turn, result in zip(turns, batch.round(turns), strict=True):
            rows[turn.row][1].extend(result.emitted)
        for row in [row for row, (_, said) in rows.items() if len(said) >= 25]:
            prompt, said = rows.pop(row)
            batch.leave(row)
            finished += 1
            assert said[:25] == text(plain, prompt, 25)
    batch.check()


@pytest.mark.parametrize("precision", ["int4", "int8"])
def test_integers_of_an_mlx_model(checkpoint: Path, precision: str, tmp_path: Path) -> None:
    """A quantised copy: the values of its integers; and with products of 8-bit inputs the text of plain decoding."""
    base = write_quantised(tmp_path / "base", checkpoint.parent / "base", 4 if precision == "int4" else 8)
    heads = write_checkpoint(tmp_path / "heads", base, 2, noise=0.05)
    manifest = export_checkpoint(heads, tmp_path / "exact", ExportOptions(precision=precision, activations="fp32"))
    assert manifest.record["weights"]["base"]["largest_error"] == 0 and manifest.record["weights"]["base"]["kept"] > 4
    expected = MLXModel(load_base(str(base)), None).logits(TEXT)
    np.testing.assert_allclose(opened(tmp_path / "exact", plain=True).logits(TEXT), expected, atol=1e-4)
    export_checkpoint(heads, tmp_path / "int8", ExportOptions(precision=precision))
    rounds, plain = opened(tmp_path / "int8"), opened(tmp_path / "int8", plain=True)
    for prompt in PROMPTS[2:4]:
        assert text(rounds, prompt) == text(plain, prompt)


def test_graphs_for_cuda_have_kernels_there(checkpoint: Path, folder: Path, tmp_path: Path) -> None:
    if read_manifest(folder).reach is not None:
        with pytest.raises(ValueError, match="for CPUs alone; export with --precision fp32, int4 or int8"):
            export_checkpoint(checkpoint, tmp_path / "fp16", ExportOptions(precision="fp16"))
        return
    export_checkpoint(checkpoint, tmp_path / "fp16", ExportOptions(precision="fp16"))
    for name in ("round.onnx", "plain.onnx", "given.onnx", "heads_1.onnx", "heads_3.onnx"):
        graph = onnx.load(str(tmp_path / "fp16" / name), load_external_data=False).graph
        assert {node.op_type for node in graph.node} <= CUDA_OPERATORS | {"CumSum"}


@pytest.fixture
def float32_is_for_cuda() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for module in ("mtpd_onnx.export.export", "mtpd_onnx.manifest"):
            patch.setattr(f"{module}.PROVIDERS", {"fp32": "cuda"})
        for module in ("builder", "cuda_modules"):
            patch.setattr(f"mtpd_onnx.graphs.{module}.CUDA_TYPES", (ir.DataType.FLOAT,))
        patch.setattr("mtpd_onnx.runtime.open.choose_provider", lambda *_: "cpu")
        yield


@pytest.mark.parametrize("checkpoint", ["conv"], indirect=True)
@pytest.mark.parametrize("ahead", [False, True])
def test_rounds_whose_text_lies_on_the_device(checkpoint: Path, tmp_path: Path, float32_is_for_cuda: None, ahead: bool) -> None:
    out = tmp_path / "onnx"
    export_checkpoint(checkpoint, out, ExportOptions())
    plain = opened(out, plain=True)
    expected = {tuple(prompt): text(plain, prompt, 60) for prompt in PROMPTS}
    backend = open_device(out, read_manifest(out), "cpu", 1, num_draft_tokens=None)
    backend.ahead = ahead

    def truth(said: list[int], length: int) -> list[int]:
        whole = next([*p, *t] for p, t in expected.items() if [*p, *t][: len(said)] == said)
        return [*whole[len(said) : len(said) + length], *[0] * length][:length]

    drafting = backend.drafting = OnDevice(3, 3, VOCAB, truth)
    for _ in range(3):
        for prompt in PROMPTS:
            assert text(backend, prompt, 60) == expected[tuple(prompt)]
    assert {source for source, _, _ in drafting.seen} == {"plain", "heads", "lookup"}
    backend.drafting = OnDevice(5, 3, VOCAB)
    whole = [*PROMPTS[-1], *expected[tuple(PROMPTS[-1])]]
    for keep in (50, 31, 7, 1):
        backend.rewind_to(keep)
        plain.rewind_to(0)
        assert backend.prefill([3, 4]) == plain.prefill([*whole[:keep], 3, 4])
        backend.rewind_to(keep)
        backend.prefill(whole[keep:60])
