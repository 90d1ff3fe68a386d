"""Flags of config.json that describe the weights never decide against the tensors: loading, export and inspect agree."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mtpd_onnx.export.export import export_checkpoint
from mtpd_onnx.runtime.open import open_folder
from tiny import LLAMA, write_base, write_checkpoint, write_quantised

from mtpd_mlx.cli import main
from mtpd_mlx.files.safetensors import Raw, RawTensors, write_raw
from mtpd_mlx.inspection.describe import describe
from mtpd_mlx.inspection.folder_view import LocalView
from mtpd_mlx.measure.step_model import MLXModel
from mtpd_mlx.model.base import load_base

TEXT = [5, 9, 14, 3, 22, 41, 60]
UNTIED = LLAMA | {"tie_word_embeddings": False}
LEFT_OVER: list[dict[str, Any]] = [
    {"quantization_config": {"group_size": 64, "bits": 4}},
    {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
    {"quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True}},
    {"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 128}},
    {"quantization_config": {"quant_method": "fp8", "activation_scheme": "dynamic"}},
    {"quantization_config": {"quant_method": "compressed-tensors", "format": "pack-quantized"}},
    {"quantization_config": {"quant_method": "mxfp4"}},
    {"quantization_config": {"quant_method": "bitnet"}},
    {"quantization_config": {"quant_method": "modelopt", "quant_algo": "NVFP4"}},
    {"quantization": {"group_size": 64, "bits": 4}},
    {"quantization": {"group_size": 64, "bits": 4, "model.embed_tokens": {"group_size": 32, "bits": 8}}},
    {"quantization": "4 bits"},
    {"quantization": {"group_size": [1]}, "quantization_config": "awq"},
]


def add(folder: Path, **values: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def logits(folder: Path) -> np.ndarray:
    return MLXModel(load_base(str(folder)), None).logits(TEXT)


def onnx_logits(folder: Path, place: Path) -> np.ndarray:
    export_checkpoint(write_checkpoint(place / "heads", folder, 1), place / "onnx")
    plain = open_folder(place / "onnx", provider="cpu", plain=True, num_threads=1)
    found: np.ndarray = plain.logits(TEXT)  # type: ignore[attr-defined]
    return found


def check_agreement(folder: Path, expected: np.ndarray, word: str, place: Path, said: Callable[[], list[str]]) -> None:
    """MLX, ONNX and inspect take the tensors, and each says in one line that the flag differs."""
    np.testing.assert_allclose(logits(folder), expected, atol=1e-5)
    assert sum(word in line for line in said()) == 1
    np.testing.assert_allclose(onnx_logits(folder, place), expected, atol=2e-4)
    seen = describe(LocalView(folder))
    assert seen["supported"] and len(seen["remarks"]) == 1 and word in seen["remarks"][0], seen


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    return lambda: [record.getMessage() for record in caplog.records if record.name.startswith("mtpd_mlx.families")]


@pytest.mark.parametrize("flags", LEFT_OVER, ids=lambda flags: json.dumps(flags)[:60])
def test_a_left_over_quantization_beside_floats(flags: dict, tmp_path: Path, said: Callable[[], list[str]]) -> None:
    base = write_base(tmp_path / "base")
    expected = logits(base)
    add(base, **flags)
    assert not load_base(str(base)).is_quantized
    check_agreement(base, expected, "weights are in floating point", tmp_path, lambda: said()[:1])
    assert describe(LocalView(base))["quantization"] is None


@pytest.mark.parametrize(
    "flags",
    [
        {"quantization": {"group_size": 64, "bits": 4}},
        {"quantization": {"group_size": 32, "bits": 8}},
        {"quantization": {"group_size": 32, "bits": 4, "model.layers.1.self_attn.k_proj": {"group_size": 64, "bits": 2}}},
        {"quantization": None},
        {"quantization": None, "quantization_config": {"quant_method": "awq", "bits": 4}},
    ],
    ids=str,
)
def test_mlx_s_integers_are_what_their_shapes_say(flags: dict, tmp_path: Path, said: Callable[[], list[str]]) -> None:
    folder = write_quantised(tmp_path / "q", write_base(tmp_path / "plain"), 4)
    expected = logits(folder)
    file = folder / "config.json"
    config = json.loads(file.read_text())
    config.pop("quantization_config", None)
    file.write_text(json.dumps(config | flags))
    assert load_base(str(folder)).is_quantized
    check_agreement(folder, expected, "packed matrices", tmp_path, lambda: said()[:1])
    assert describe(LocalView(folder))["quantization"]["matrices"] == 15


def test_settings_that_are_right_stay_as_they_are(tmp_path: Path, said: Callable[[], list[str]]) -> None:
    folder = write_quantised(tmp_path / "q", write_base(tmp_path / "plain"), 4)
    config = json.loads((folder / "config.json").read_text())
    assert load_base(str(folder)).config["quantization"] == config["quantization"]
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "quantization"}))
    base = load_base(str(folder))  # the name that older versions of mlx-lm wrote
    assert base.is_quantized and base.config["quantization"] == config["quantization_config"]
    assert not said() and not describe(LocalView(folder))["remarks"]


def packed_by_others(kind: str) -> dict[str, Raw]:
    words = Raw("I32", np.zeros((64, 8), np.uint32))
    stem = "model.layers.0.self_attn.q_proj"
    return {
        "awq": {f"{stem}.qweight": words, f"{stem}.qzeros": words, f"{stem}.scales": Raw.of_floats(np.ones((1, 64)))},
        "bitsandbytes": {f"{stem}.weight": Raw("U8", np.zeros((2048, 1), np.uint8)), f"{stem}.weight.absmax": words},
        "compressed": {f"{stem}.weight_packed": words, f"{stem}.weight_scale": Raw.of_floats(np.ones((64, 1)))},
        "fp8": {f"{stem}.weight": Raw("F8_E4M3", np.zeros((64, 64), np.uint8))},
        "fp8 with scales": {
            f"{stem}.weight": Raw("F8_E4M3", np.zeros((64, 64), np.uint8)),
            f"{stem}.weight_scale_inv": Raw.of_floats(np.ones((1, 1))),
        },
    }[kind]


@pytest.mark.parametrize("kind", ["awq", "bitsandbytes", "compressed", "fp8", "fp8 with scales"])
def test_weights_packed_by_others_are_refused_alike(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Whether config.json says so or not."""
    base = write_base(tmp_path / "base")
    checkpoint = write_checkpoint(tmp_path / "heads", base, 1)
    source = RawTensors([base / "model.safetensors"])
    tensors = {name: source[name] for name in source if name != "model.layers.0.self_attn.q_proj.weight"}
    write_raw(base / "model.safetensors", tensors | packed_by_others(kind))
    why = describe(LocalView(base))["why_not"]
    assert "q_proj" in why and "mlx_lm.convert" in why
    for arguments in (
        ["generate", str(base), "--plain", "--prompt", "a"],
        ["export", str(checkpoint), "--allow-base-mismatch", "--model", str(base), "--out", str(tmp_path / "out")],
    ):
        capsys.readouterr()
        assert main(arguments) == 1
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1 and why in lines[0], lines


def test_an_output_head_that_config_json_denies(tmp_path: Path, said: Callable[[], list[str]]) -> None:
    """As transformers, which ties ends of different values no more (mlx-lm would drop the head)."""
    base = write_base(tmp_path / "base", UNTIED)
    expected = logits(base)
    add(base, tie_word_embeddings=True)
    check_agreement(base, expected, "hold an lm_head.weight: it is read", tmp_path, lambda: said()[:1])
    assert not describe(LocalView(base))["dims"]["tied"] and not load_base(str(base)).dims.tied
    assert load_base(str(base)).config["tie_word_embeddings"] is False


def test_an_output_head_that_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Where config.json says that there is one, a tensor is missing; where it says nothing, the ends are tied."""
    base = write_base(tmp_path / "base")
    expected, config = logits(base), json.loads((base / "config.json").read_text())
    checkpoint = write_checkpoint(tmp_path / "heads", base, 1)
    (base / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "tie_word_embeddings"}))
    np.testing.assert_array_equal(logits(base), expected)
    assert describe(LocalView(base))["dims"]["tied"]
    add(base, tie_word_embeddings=False)
    assert "missing key 'lm_head.weight'" in describe(LocalView(base))["why_not"]
    for arguments in (
        ["generate", str(base), "--plain", "--prompt", "a"],
        ["export", str(checkpoint), "--out", str(tmp_path / "out")],
    ):
        capsys.readouterr()
        assert main(arguments) == 1
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1 and "lm_head.weight" in lines[0], lines


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "int8", None])
def test_a_dtype_that_config_json_claims(dtype: str | None, tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    expected = logits(base)
    add(base, torch_dtype=dtype, dtype=dtype)
    assert str(load_base(str(base)).dtype) == "mlx.core.float32"
    np.testing.assert_array_equal(logits(base), expected)
    assert describe(LocalView(base))["dtypes"] == ["float32"]


@pytest.mark.parametrize("key", ["num_nextn_predict_layers", "mtp_num_hidden_layers", "num_mtp_layers"])
def test_heads_are_counted_by_tensors(key: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    base = write_base(tmp_path / "base")
    expected = logits(base)
    checkpoint = write_checkpoint(tmp_path / "heads", base, 2)
    assert main(["export-heads", "--with-base", str(checkpoint), "--out", str(tmp_path / "model")]) == 0
    for claimed in (0, 1, 5, None):
        add(tmp_path / "model", **{key: claimed})
        np.testing.assert_array_equal(logits(tmp_path / "model"), expected)
        capsys.readouterr()
        assert main(["inspect", str(tmp_path / "model")]) == 0
        assert "2 MTP heads of its own" in capsys.readouterr().out
        assert main(["import-heads", str(tmp_path / "model"), "--out", str(tmp_path / f"back{claimed}")]) == 0
        assert "2 heads imported" in capsys.readouterr().out
        add(base, **{key: claimed})
        np.testing.assert_array_equal(logits(base), expected)


def test_activations_in_integers_are_not_passed_over(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    base = write_base(tmp_path / "base")
    add(base, quantize_activations=True)
    assert main(["generate", str(base), "--plain", "--prompt", "a"]) == 1
    assert "quantize_activations is not supported" in capsys.readouterr().err
    assert "quantize_activations" in describe(LocalView(base))["why_not"]


def test_layers_that_config_json_leaves_out_are_named(tmp_path: Path, said: Callable[[], list[str]]) -> None:
    base = write_base(tmp_path / "base")
    whole = logits(base)
    add(base, num_hidden_layers=1)
    assert np.abs(logits(base) - whole).max() > 0.1
    assert said() == [f"{base}: config.json says num_hidden_layers 1: not read are layers 1"]
