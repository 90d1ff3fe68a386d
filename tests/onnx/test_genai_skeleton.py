"""tools/genai_peer skeleton and fill, on a folder laid out as onnxruntime-genai's builder lays it out."""

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pytest
from helpers.tools import tool

D, Q, KV, WIDE, VOCAB, POSITIONS, HALF = 16, 24, 8, 40, 31, 50, 4
CONFIG = {"model_type": "qwen3", "rope_theta": 1e4}


def hf_weights(tied: bool) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = {"model.embed_tokens.weight": (VOCAB, D), "model.norm.weight": (D,)}
    if not tied:
        shapes["lm_head.weight"] = (VOCAB, D)
    shapes |= {f"model.layers.0.{n}_layernorm.weight": (D,) for n in ("input", "post_attention")}
    shapes |= {f"model.layers.0.self_attn.{n}_norm.weight": (8,) for n in "qk"}
    for n, rows in (("q", Q), ("k", KV), ("v", KV)):
        shapes |= {f"model.layers.0.self_attn.{n}_proj.weight": (rows, D), f"model.layers.0.self_attn.{n}_proj.bias": (rows,)}
    shapes["model.layers.0.self_attn.o_proj.weight"] = (D, Q)
    shapes |= {f"model.layers.0.mlp.{n}_proj.weight": (WIDE, D) for n in ("gate", "up")}
    shapes["model.layers.0.mlp.down_proj.weight"] = (D, WIDE)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def save_hf(folder: Path, weights: dict[str, np.ndarray]) -> None:
    from safetensors.numpy import save_file

    folder.mkdir(exist_ok=True)
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG))


def initializers(w: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What the builder makes of them, by its own names and in its own order."""
    layer, attention, mlp = "model.layers.0", "model.layers.0.self_attn", "model.layers.0.mlp"
    frequencies = 1 / (np.float32(1e4) ** (np.arange(0, 2 * HALF, 2) / np.float32(2 * HALF))).astype(np.float32)
    angles = np.arange(POSITIONS, dtype=np.float32)[:, None] * frequencies
    head = w.get("lm_head.weight", w["model.embed_tokens.weight"])
    return {
        "model.embed_tokens.weight": w["model.embed_tokens.weight"],
        f"{layer}.input_layernorm.weight": w[f"{layer}.input_layernorm.weight"],
        f"{layer}.attn.qkv_proj.MatMul.weight": np.concatenate([w[f"{attention}.{n}_proj.weight"] for n in "qkv"]).T,
        f"{layer}.attn.qkv_proj.Add.bias": np.concatenate([w[f"{attention}.{n}_proj.bias"] for n in "qkv"]),
        f"{layer}.attn.q_norm.layernorm.weight": w[f"{attention}.q_norm.weight"],
        f"{layer}.attn.k_norm.layernorm.weight": w[f"{attention}.k_norm.weight"],
        "cos_cache": np.cos(angles),
        "sin_cache": np.sin(angles) + np.float32(1e-6),  # not what the tool predicts: the difference is kept
        f"{layer}.attn.o_proj.MatMul.weight": w[f"{attention}.o_proj.weight"].T,
        f"{layer}.post_attention_layernorm.weight": w[f"{layer}.post_attention_layernorm.weight"],
        f"{layer}.mlp.gate_up_proj.MatMul.weight": np.concatenate([w[f"{mlp}.{n}_proj.weight"] for n in ("gate", "up")]).T,
        f"{layer}.mlp.down_proj.MatMul.weight": w[f"{mlp}.down_proj.weight"].T,
        "model.layers.1.final_norm_layernorm.weight": w["model.norm.weight"],
        "lm_head.MatMul.weight": head.T,
        "a.constant": np.arange(5, dtype=np.float32),
    }


def save_genai(folder: Path, arrays: dict[str, np.ndarray], dtype: str) -> None:
    """The graph's initializers alone, in one weights file with a gap in it."""
    folder.mkdir()
    (folder / "genai_config.json").write_text(json.dumps({"model": {"decoder": {"filename": "model.onnx"}}}))
    (folder / "tokenizer.json").write_text("{}")
    data, tensors = b"", []
    for name, array in arrays.items():
        data += b"\0" * (-len(data) % 64)
        tensor = onnx.numpy_helper.from_array(np.ascontiguousarray(array.astype(dtype)), name)
        data, offset, raw = data + tensor.raw_data, len(data), tensor.raw_data
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", "model.onnx.data"), ("offset", offset), ("length", len(raw))):
            tensor.external_data.add(key=key, value=str(value))
        tensors.append(tensor)
    (folder / "model.onnx.data").write_bytes(data)
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([], "g", [], [], tensors)), folder / "model.onnx")


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("tied", [True, False])
def test_fill_writes_what_the_builder_wrote(tmp_path: Path, dtype: str, tied: bool) -> None:
    weights = hf_weights(tied)
    save_hf(tmp_path / "hf", weights)
    save_genai(tmp_path / "genai", initializers(weights), dtype)
    done = tool("genai_peer", "skeleton", tmp_path / "genai", tmp_path / "hf", tmp_path / "skeleton")
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "skeleton" / "model.onnx.data").exists()
    done = tool("genai_peer", "fill", tmp_path / "skeleton", tmp_path / "hf", tmp_path / "filled", "--threads", 2)
    assert done.returncode == 0, done.stderr
    names = {file.name for file in (tmp_path / "genai").iterdir()}
    assert {file.name for file in (tmp_path / "filled").iterdir()} == names
    for name in names:
        assert (tmp_path / "filled" / name).read_bytes() == (tmp_path / "genai" / name).read_bytes(), name


def refused(*arguments: object) -> str:
    done = tool("genai_peer", *arguments)
    lines = done.stderr.splitlines()
    assert done.returncode == 1 and len(lines) == 1, done.stderr
    return lines[0]


def test_what_does_not_fit_is_one_line(tmp_path: Path) -> None:
    weights = hf_weights(True)
    save_hf(tmp_path / "hf", weights)
    save_genai(tmp_path / "genai", initializers(weights), "float16")
    assert tool("genai_peer", "skeleton", tmp_path / "genai", tmp_path / "hf", tmp_path / "skeleton").returncode == 0
    fill = ("fill", tmp_path / "skeleton", tmp_path / "hf", tmp_path / "filled")
    save_hf(tmp_path / "hf", weights | {"model.norm.weight": np.zeros(3, np.float32)})
    assert "model.norm.weight: gives shape (3,)" in refused(*fill)
    save_hf(tmp_path / "hf", {n: w for n, w in weights.items() if n != "model.norm.weight"})
    assert "missing key 'model.norm.weight'" in refused(*fill)
    save_hf(tmp_path / "hf", weights | {"model.norm.weight": np.zeros(D, np.int32)})
    assert "dtype I32" in refused(*fill)
    bias = "model.layers.0.self_attn.o_proj.bias"
    save_hf(tmp_path / "hf", weights | {bias: np.ones(D, np.float32)})
    assert f"no place for {bias}" in refused(*fill)
    (tmp_path / "hf" / "model.safetensors").unlink()
    assert "no model*.safetensors" in refused(*fill)
    assert "not a skeleton" in refused("fill", tmp_path / "hf", tmp_path / "hf", tmp_path / "filled")
    assert "not a genai folder" in refused("skeleton", tmp_path / "hf", tmp_path / "hf", tmp_path / "s")
    assert "exists already" in refused("skeleton", tmp_path / "genai", tmp_path / "hf", tmp_path / "skeleton")
    assert not (tmp_path / "filled").exists()


def test_quantised_folders_have_no_skeleton(tmp_path: Path) -> None:
    weights = hf_weights(True)
    save_hf(tmp_path / "hf", weights)
    save_genai(tmp_path / "genai", {"lm_head.MatMul.weight_Q4": np.zeros((4, 4), np.uint8)}, "uint8")
    line = refused("skeleton", tmp_path / "genai", tmp_path / "hf", tmp_path / "skeleton")
    assert "UINT8" in line and "fp32 and fp16" in line


@pytest.mark.skipif(find_spec("torch") is not None, reason="torch is installed")
def test_build_says_what_to_install(tmp_path: Path) -> None:
    line = refused("build", tmp_path, tmp_path / "out")
    assert "pip install" in line and "torch" in line
