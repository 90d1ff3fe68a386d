"""What the graphs need to know of a base, read from its Hugging Face config.json."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
ROPE_TYPES = ("default", "linear", "llama3")


@dataclass(frozen=True)
class Dims:
    """Names follow Hugging Face configs."""

    model_type: str
    hidden_size: int
    num_layers: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    rms_norm_eps: float
    rope_theta: float
    rope_scaling: dict[str, Any] | None
    context_length: int
    tied: bool
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    qk_norm: bool
    quantization: dict[str, Any] | None


def read_dims(folder: Path) -> Dims:
    """Reads `folder`/config.json; a family or feature that the graphs cannot express is refused in one line."""
    file = folder / "config.json"
    try:
        config = json.loads(file.read_text())
        return _dims(config)
    except OSError as error:
        raise ValueError(f"{folder}: no readable config.json") from error
    except KeyError as error:
        raise ValueError(f"{file}: missing key {error}") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{file}: not valid JSON") from error


def _dims(config: dict[str, Any]) -> Dims:
    family = config.get("model_type")
    if family not in FAMILIES:
        raise ValueError(f"ONNX export: model_type {family!r} is not supported; supported: {', '.join(FAMILIES)}")
    scaling = config.get("rope_scaling")
    kind = (scaling.get("rope_type") or scaling.get("type") or "default") if scaling else "default"
    if kind not in ROPE_TYPES:
        raise ValueError(f"ONNX export: rope scaling {kind!r} is not supported; supported: {', '.join(ROPE_TYPES)}")
    windowed = config.get("sliding_window") is not None and config.get("use_sliding_window", family != "qwen2")
    if set(config.get("layer_types") or ["full_attention"]) != {"full_attention"} or (
        windowed and family in ("llama", "mistral")
    ):
        raise ValueError("ONNX export: sliding-window attention is not supported")
    if config.get("rope_traditional"):
        raise ValueError("ONNX export: rope_traditional is not supported")
    heads = config["num_attention_heads"]
    bias = bool(config.get("attention_bias", False))
    return Dims(
        model_type=family,
        hidden_size=config["hidden_size"],
        num_layers=config["num_hidden_layers"],
        intermediate_size=config["intermediate_size"],
        num_heads=heads,
        num_kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=config.get("head_dim") or config["hidden_size"] // heads,
        vocab_size=config["vocab_size"],
        rms_norm_eps=config["rms_norm_eps"],
        rope_theta=float(config.get("rope_theta", 10000.0)),
        rope_scaling=scaling if kind != "default" else None,
        context_length=int(config.get("max_position_embeddings") or 2048),
        tied=bool(config.get("tie_word_embeddings", family in ("llama", "mistral"))),
        qkv_bias=family == "qwen2" or (bias and family in ("llama", "mistral")),
        o_bias=bias and family in ("llama", "mistral"),
        mlp_bias=bool(config.get("mlp_bias", False)) and family in ("llama", "mistral"),
        qk_norm=family == "qwen3",
        quantization=config.get("quantization"),
    )
