"""Exported graphs against MLX and against each other, for every family: logits, tokens, every accept length, every K."""

from pathlib import Path

import numpy as np
import pytest
from helpers.decode import decoded
from mtpd_onnx.export.export import export_checkpoint
from mtpd_onnx.runtime.open import open_folder
from mtpd_onnx.runtime.plain import PlainBackend
from mtpd_onnx.runtime.split import SplitModel
from tiny import FAMILIES, VOCAB, write_base, write_checkpoint, write_quantised

from mtpd_mlx.families.config import read_config_json
from mtpd_mlx.measure.step_model import MLXModel
from mtpd_mlx.model.load_save import load_checkpoint
from mtpd_mlx.options.export import ExportOptions
from mtpd_mlx.speculative.rounds import StepBackend

PROMPTS = [[5], [9, 4], [6, 7, 8], [11, 3, 50, 4], [1, 2, 3, 4, 5], list(range(30)), list(range(90, 40, -1))]


def make(folder: Path, family: str = "llama-tied", num_heads: int = 3, source: str = "postnorm", noise: float = 0.01) -> Path:
    base = write_base(folder / "base", FAMILIES[family], scale=2.0)
    return write_checkpoint(folder / "heads", base, num_heads, source, noise=noise)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_decodes_as_mlx_does(family: str, tmp_path: Path) -> None:
    checkpoint = make(tmp_path, family)
    base, heads, _ = load_checkpoint(checkpoint)
    export_checkpoint(checkpoint, tmp_path / "fused")
    export_checkpoint(checkpoint, tmp_path / "split", ExportOptions(layout="split"))
    fused, split = (open_folder(tmp_path / name, provider="cpu", num_threads=1) for name in ("fused", "split"))
    plain = open_folder(tmp_path / "fused", provider="cpu", plain=True, num_threads=1)
    assert isinstance(plain, PlainBackend) and isinstance(split, StepBackend) and isinstance(split.model, SplitModel)
    text = np.random.default_rng(0).integers(0, VOCAB, 40).tolist()
    expected = MLXModel(base, None).logits(text)
    np.testing.assert_allclose(plain.logits(text), expected, atol=1e-4)
    np.testing.assert_allclose(split.model.logits(text), expected, atol=1e-4)
    for prompt in PROMPTS[2:6:3]:
        ours = decoded(StepBackend(MLXModel(base, heads)), prompt, 40)
        assert decoded(plain, prompt, 40)[0] == ours[0]
        assert decoded(split, prompt, 40) == ours
        assert decoded(fused, prompt, 40)[0] == ours[0]


@pytest.mark.parametrize(
    ("num_heads", "source", "noise"),
    [(1, "prenorm", 0.05), (2, "postnorm", 0.05), (4, "prenorm", 0.01), (4, "postnorm", 0.05), (8, "postnorm", 0.01)],
)
def test_fused_equals_split_equals_plain(num_heads: int, source: str, noise: float, tmp_path: Path) -> None:
    checkpoint = make(tmp_path, num_heads=num_heads, source=source, noise=noise)
    export_checkpoint(checkpoint, tmp_path / "fused")
    export_checkpoint(checkpoint, tmp_path / "split", ExportOptions(layout="split"))
    fused, split = (open_folder(tmp_path / n, provider="cpu", num_threads=1, fixed_rounds=True) for n in ("fused", "split"))
    plain = open_folder(tmp_path / "fused", provider="cpu", plain=True, num_threads=1)
    seen: set[int] = set()
    for prompt in PROMPTS:
        tokens, accepted = decoded(fused, prompt, 60)
        assert tokens == decoded(plain, prompt, 60)[0]
        slow, slow_accepted = decoded(split, prompt, 60)
        assert slow == tokens
        if len(prompt) >= num_heads:
            assert accepted == slow_accepted
        seen |= set(accepted)
    assert len(seen) >= min(3, num_heads + 1), f"accept lengths seen: {seen}"


def test_prefill_in_chunks_equals_prefill_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = make(tmp_path)
    export_checkpoint(checkpoint, tmp_path / "fused")
    fused = open_folder(tmp_path / "fused", provider="cpu", num_threads=1, fixed_rounds=True)
    whole = [decoded(fused, prompt, 40) for prompt in PROMPTS]
    for chunk in (1, 3, 7):
        monkeypatch.setattr("mtpd_onnx.runtime.limits.PREFILL_CHUNK", chunk)
        assert [decoded(fused, prompt, 40) for prompt in PROMPTS] == whole


def test_rewinding_anywhere_and_going_on_equals_a_fresh_start(tmp_path: Path) -> None:
    """Random conversations: prefill, rounds with right and wrong tokens, steps, rewinds; then the same tokens afresh."""
    checkpoint = make(tmp_path)
    export_checkpoint(checkpoint, tmp_path / "fused")
    fused, fresh = (open_folder(tmp_path / "fused", provider="cpu", num_threads=1) for _ in range(2))
    rng = np.random.default_rng(3)
    for _ in range(12):
        fused.rewind_to(0)
        held: list[int] = []
        following = 0
        for _ in range(12):
            action = rng.integers(0, 4)
            if not held or action == 0:
                new = rng.integers(0, VOCAB, rng.integers(1, 6)).tolist()
                following = fused.prefill(new)
                held += new
            elif action == 1:
                held.append(following)
                following = fused.step(following)
            elif action == 2:
                token = following if rng.random() < 0.8 else int(rng.integers(0, VOCAB))
                result = fused.round(token)
                held += [token, *result.emitted[:-1]]
                following = result.emitted[-1]
            else:
                keep = int(rng.integers(1, len(held) + 1))
                following = held[keep] if keep < len(held) else following
                fused.rewind_to(keep)
                held = held[:keep]
            assert fused.length == len(held)
        fresh.rewind_to(0)
        first = fresh.prefill(held)
        fused.rewind_to(len(held))
        assert fused.round(first).emitted == fresh.round(first).emitted
        assert fused.round(5).accepted == fresh.round(5).accepted


def test_quantised_base_exports_its_dequantised_values(tmp_path: Path) -> None:
    from mtpd_onnx.weights.tensors import Tensors

    from mtpd_mlx.model.base import load_base
    from mtpd_mlx.model.load_save import flatten
    from mtpd_mlx.model.runtime import mx

    plain = write_base(tmp_path / "plain")
    for bits in (2, 3, 4, 5, 6, 8):
        folder = write_quantised(tmp_path / str(bits), plain, bits)
        tensors = Tensors.of_base(folder, read_config_json(folder)["quantization"])
        unpacked = flatten(load_base(str(folder), dequantize=True).model)
        for name, value in unpacked.items():
            want = np.array(value.astype(mx.float32))
            np.testing.assert_allclose(tensors.get(name, want.shape), want, rtol=0, atol=1e-6)


def test_fp16_export_is_valid_onnx_with_half_the_weights(tmp_path: Path) -> None:
    checkpoint = make(tmp_path)
    full = export_checkpoint(checkpoint, tmp_path / "fp32")
    half = export_checkpoint(checkpoint, tmp_path / "fp16", ExportOptions(precision="fp16"))
    assert half.files["weights.bin"]["bytes"] < 0.8 * full.files["weights.bin"]["bytes"]
    with pytest.raises(ValueError, match="fp16"):
        open_folder(tmp_path / "fp16", provider="cpu")


def test_only_standard_operators_in_the_split_layout(tmp_path: Path) -> None:
    import onnx

    export_checkpoint(make(tmp_path, "qwen3"), tmp_path / "split", ExportOptions(layout="split"))
    for name in ("main.onnx", "mtp_heads.onnx"):
        model = onnx.load(str(tmp_path / "split" / name), load_external_data=False)
        assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}
        assert {entry.domain for entry in model.opset_import} <= {"", "ai.onnx"}
