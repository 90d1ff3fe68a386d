"""Half-precision graphs on an NVIDIA GPU against fp32 on the CPU: norms inside attention, rounds; skipped elsewhere."""

import ctypes
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from helpers.decode import text
from helpers.precision import TEXT, plain_logits
from mtpd_onnx.export.export import export_checkpoint
from mtpd_onnx.runtime.device_rounds import DeviceBackend
from mtpd_onnx.runtime.fused import FusedBackend
from mtpd_onnx.runtime.open import open_folder
from mtpd_onnx.runtime.open_rows import open_rows
from mtpd_onnx.runtime.plain import PlainBackend
from tiny import FAMILIES, write_base, write_checkpoint

from mtpd_mlx.model.runtime import mx
from mtpd_mlx.options.export import ExportOptions
from mtpd_mlx.speculative.batch import Turn
from mtpd_mlx.speculative.loop import generate
from mtpd_mlx.speculative.sampling import Sampling


def has_gpu() -> bool:
    """A wheel for CUDA alone is not enough: without a driver nothing can run."""
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        return False
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


pytestmark = pytest.mark.skipif(not has_gpu(), reason="needs onnxruntime-gpu and an NVIDIA GPU")
TOLERANCE = {"fp16": 0.02, "bf16": 0.2}  # of the logits' standard deviation


def spread_norms(base: Path) -> None:
    """Weights of the q and k norms that are not all alike: leaving the norm out, or swapping the two, changes everything."""
    file, rng = base / "model.safetensors", np.random.default_rng(3)
    weights = {name: np.array(w) for name, w in mx.load(str(file)).items()}
    for name, w in weights.items():
        if name.endswith(("q_norm.weight", "k_norm.weight")):
            weights[name] = rng.uniform(0.5, 2.0, w.shape).astype(np.float32)
    mx.save_safetensors(str(file), {name: mx.array(w) for name, w in weights.items()})


@pytest.mark.parametrize("precision", list(TOLERANCE))
@pytest.mark.parametrize("family", ["llama-tied", "qwen2", "qwen3"])
def test_cuda_computes_what_the_cpu_does(family: str, precision: str, tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", FAMILIES[family], scale=2.0)
    spread_norms(base)
    checkpoint = write_checkpoint(tmp_path / "heads", base, 3, noise=0.05)
    export_checkpoint(checkpoint, tmp_path / "fp32")
    export_checkpoint(checkpoint, tmp_path / "half", ExportOptions(precision=precision))
    expected = plain_logits(tmp_path / "fp32")
    plain = open_folder(tmp_path / "half", provider="cuda", plain=True)
    assert isinstance(plain, PlainBackend)
    error = np.abs(plain.logits(TEXT) - expected).max() / expected.std()
    assert error < TOLERANCE[precision]
    if precision == "fp16":
        fused = open_folder(tmp_path / "half", provider="cuda")
        assert text(fused, TEXT) == text(plain, TEXT)


@pytest.mark.parametrize("plain", [False, True], ids=["round", "step"])
def test_capturing_leaves_no_trace_and_changes_no_text(plain: bool, tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "heads", write_base(tmp_path / "base", scale=2.0), 3, noise=0.05)
    export_checkpoint(checkpoint, tmp_path / "half", ExportOptions(precision="fp16"))
    how = {"provider": "cuda", "plain": plain, "fixed_rounds": True}
    captured, eager = (open_folder(tmp_path / "half", captured=c, **how) for c in (True, False))  # type: ignore[arg-type]
    assert isinstance(captured, FusedBackend | PlainBackend) and captured.ahead
    assert not any(captured.runner.get(name).any() for name in captured.runner._state)
    assert text(captured, TEXT) == text(eager, TEXT)


def test_rounds_of_any_number_of_drafts_are_captured_and_change_no_text(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "heads", write_base(tmp_path / "base", scale=2.0), 3, noise=0.05)
    export_checkpoint(checkpoint, tmp_path / "half", ExportOptions(precision="fp16"))
    captured, eager = (open_folder(tmp_path / "half", provider="cuda", choose=True, captured=c) for c in (True, False))
    assert isinstance(captured, DeviceBackend) and captured.ahead
    plain = open_folder(tmp_path / "half", provider="cuda", plain=True)
    for drafts in (1, 2, 3):
        assert text(open_folder(tmp_path / "half", provider="cuda", num_draft_tokens=drafts), TEXT) == text(plain, TEXT)
    assert text(captured, TEXT) == text(eager, TEXT) == text(plain, TEXT)


def test_sampled_rounds_are_captured_and_change_no_text(tmp_path: Path) -> None:
    """Where one token alone may be drawn, sampled text is greedy text. (Others part: products are timed anew in each session,
    and kernels round differently.)"""
    checkpoint = write_checkpoint(tmp_path / "heads", write_base(tmp_path / "base", scale=2.0), 3, noise=0.05)
    export_checkpoint(checkpoint, tmp_path / "half", ExportOptions(precision="fp16"))
    plain = open_folder(tmp_path / "half", provider="cuda", plain=True)
    for drafts in (None, 1, 3):
        sampling = Sampling(temp=0.8, top_k=1, seed=3)
        how = {"choose": drafts is None, "num_draft_tokens": drafts}
        captured = open_folder(tmp_path / "half", provider="cuda", sampling=sampling, **how)  # type: ignore[arg-type]
        assert isinstance(captured, DeviceBackend) and captured.ahead
        assert text(captured, TEXT) == text(plain, TEXT)


@pytest.mark.parametrize("drafts", [0, 3])
def test_texts_side_by_side_are_what_they_are_alone(drafts: int, tmp_path: Path) -> None:
    """One of them alone at last, which goes on elsewhere."""
    checkpoint = write_checkpoint(tmp_path / "heads", write_base(tmp_path / "base", scale=2.0), 4, noise=0.05)
    export_checkpoint(checkpoint, tmp_path / "half", ExportOptions(precision="fp16", capacity=256))
    plain = open_folder(tmp_path / "half", provider="cuda", plain=True)
    rows = open_rows(tmp_path / "half", 3, provider="cuda")
    texts, expected = dict[int, list[int]](), dict[int, list[int]]()
    for prompt in (TEXT[:20], TEXT[:3], TEXT[5:40]):
        plain.rewind_to(0)
        row = rows.join(Sampling())
        texts[row] = [rows.prefill(row, prompt)]
        expected[row] = [t for chunk in generate(plain, prompt, max_tokens=60) for t in chunk.tokens]
    while min(map(len, texts.values())) < 30:
        turns = [Turn(row, made[-1], drafts) for row, made in texts.items()]
        for turn, result in zip(turns, rows.round(turns), strict=True):
            texts[turn.row] += result.emitted
    lone = rows.alone(2)
    while len(texts[2]) < 60:
        texts[2] += lone.round(texts[2][-1]).emitted
    rows.check()
    for row, made in texts.items():
        assert made[:60] == expected[row][: len(made)]
