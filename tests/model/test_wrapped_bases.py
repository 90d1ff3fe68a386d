"""Quantised language models inside multimodal checkpoints, as mlx-community lays them out: the same numbers as alone."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from mtpd_onnx.export.export import export_checkpoint
from mtpd_onnx.runtime.open import open_folder
from mtpd_onnx.runtime.plain import PlainBackend
from tiny import LLAMA, VOCAB, write_base, write_checkpoint, write_quantised, write_tokenizer

from mtpd_mlx.families.multimodal import text_config, text_name
from mtpd_mlx.files.safetensors import Raw, RawTensors, write_raw
from mtpd_mlx.inspection.describe import describe
from mtpd_mlx.inspection.folder_view import LocalView
from mtpd_mlx.measure.step_model import MLXModel
from mtpd_mlx.model.base import load_base
from mtpd_mlx.options.export import ExportOptions

GEMMA3 = LLAMA | {"model_type": "gemma3_text", "query_pre_attn_scalar": 16, "sliding_window": 8}


def mixed(path: str, module: Any) -> Any:
    return {"bits": 8 if "v_proj" in path else 4, "group_size": 32} if hasattr(module, "to_quantized") else False


def wrap(folder: Path, plain: Path) -> Path:
    """`plain` as the text of a multimodal model, with a tensor of its vision tower."""
    folder.mkdir()
    source = RawTensors([plain / "model.safetensors"])
    tensors = {f"language_model.{name}": source[name] for name in source.table}
    vision = {"vision_tower.patch.weight": Raw.of_floats(np.ones((4, 4), np.float32))}
    write_raw(folder / "model.safetensors", tensors | vision)
    inner = json.loads((plain / "config.json").read_text())
    quantization = inner.pop("quantization")
    inner.pop("quantization_config", None)
    own = {f"language_model.{k}" if isinstance(v, dict) else k: v for k, v in quantization.items()}
    outer = {"model_type": "gemma3", "text_config": inner, "vision_config": {}, "quantization": own, "eos_token_id": [0]}
    (folder / "config.json").write_text(json.dumps(outer))
    write_tokenizer(folder)
    return folder


def test_a_quantised_text_model_inside(tmp_path: Path) -> None:
    plain = write_quantised(tmp_path / "q", write_base(tmp_path / "plain", GEMMA3), 4, quant_predicate=mixed)
    folder = wrap(tmp_path / "wrapped", plain)
    text = np.random.default_rng(0).integers(0, VOCAB, 24).tolist()
    expected = MLXModel(load_base(str(plain)), None).logits(text)
    base = load_base(str(folder))
    assert base.is_quantized and base.config["model_type"] == "gemma3_text"
    assert np.array_equal(MLXModel(base, None).logits(text), expected)
    found = describe(LocalView(folder))
    assert found["supported"] and found["quantization"]["bits"] == [4, 8]
    assert found["parameters"] == describe(LocalView(plain))["parameters"]
    checkpoint = write_checkpoint(tmp_path / "heads", folder, num_heads=1)
    export_checkpoint(checkpoint, tmp_path / "onnx", ExportOptions(precision="int4", activations="fp32", group_size=32))
    onnx = open_folder(tmp_path / "onnx", provider="cpu", plain=True, num_threads=1)
    assert isinstance(onnx, PlainBackend)
    np.testing.assert_allclose(onnx.logits(text), expected, rtol=0, atol=1e-3)


def test_names_and_configs() -> None:
    assert text_name("language_model.model.norm.weight") == "model.norm.weight"
    assert text_name("model.language_model.layers.0.mlp.up_proj.weight") == "model.layers.0.mlp.up_proj.weight"
    assert text_name("language_model.lm_head.weight") == text_name("lm_head.weight") == "lm_head.weight"
    assert text_name("model.vision_tower.x") is None and text_name("model.layers.0.x") == "model.layers.0.x"
    bare = text_config({"model_type": "gemma3", "text_config": {"model_type": "gemma3_text", "hidden_size": 2560}})
    assert bare["vocab_size"] == 262208 and bare["num_attention_heads"] == 8
    assert text_config(LLAMA) is LLAMA
