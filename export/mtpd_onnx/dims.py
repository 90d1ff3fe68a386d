"""What the graphs need to know of a base, read from its Hugging Face config.json as mlx-lm reads it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
ROPE_TYPES = ("default", "linear", "llama3", "yarn")


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
        config = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{folder}: no readable config.json in it") from error
    except ValueError as error:
        raise ValueError(f"{file}: not valid JSON ({str(error).splitlines()[0]})") from error
    if not isinstance(config, dict):
        raise ValueError(f"{file}: got {type(config).__name__}, expected an object")
    try:
        _check_supported(config)
        return _dims(config)
    except KeyError as error:
        raise ValueError(f"{file}: missing key {error}") from error
    except (TypeError, AttributeError) as error:
        raise ValueError(f"{file}: a value has the wrong type ({error})") from error


def rope_type(scaling: dict[str, Any] | None) -> str:
    """The kind of scaling; "type" goes before "rope_type" as in mlx-lm."""
    return str(scaling.get("type") or scaling.get("rope_type") or "default") if scaling else "default"


def _check_supported(config: dict[str, Any]) -> None:
    family = config.get("model_type")
    if family not in FAMILIES:
        raise ValueError(f"ONNX export: model_type {family!r} is not supported; supported: {', '.join(FAMILIES)}")
    llama = family in ("llama", "mistral")
    windowed = config.get("sliding_window") is not None and config.get("use_sliding_window", llama)
    kinds = set(config.get("layer_types") or ["full_attention"])
    if kinds != {"full_attention"} or (windowed and "layer_types" not in config):
        raise ValueError(f"ONNX export: {family} with sliding-window attention is not supported")
    if config.get("rope_traditional") and family != "qwen3":
        raise ValueError("ONNX export: rope_traditional is not supported")
    kind = rope_type(_rope_scaling(config))
    if kind not in ROPE_TYPES:
        raise ValueError(f"ONNX export: rope scaling {kind!r} is not supported; supported: {', '.join(ROPE_TYPES)}")
    method = (config.get("quantization_config") or {}).get("quant_method")
    if "quantization" not in config and method is not None:
        raise ValueError(f"ONNX export: weights quantised by {method!r} are not supported; supported: MLX affine")


def _rope_scaling(config: dict[str, Any]) -> dict[str, Any] | None:
    nested = config.get("rope_parameters") if config.get("model_type") == "qwen3" else None
    return config.get("rope_scaling") or nested


def _rope_theta(config: dict[str, Any]) -> float:
    family, nested = config["model_type"], config.get("rope_parameters") or {}
    if config.get("rope_theta") is not None:
        return float(config["rope_theta"])
    if family == "qwen3":
        return float(nested["rope_theta"])
    return 1e6 if family == "qwen2" else 1e4


def _dims(config: dict[str, Any]) -> Dims:
    family, heads = config["model_type"], config["num_attention_heads"]
    llama, width = family in ("llama", "mistral"), config["hidden_size"]
    bias = bool(config.get("attention_bias", False)) and llama
    scaling = _rope_scaling(config)
    dims = Dims(
        model_type=family,
        hidden_size=width,
        num_layers=config["num_hidden_layers"],
        intermediate_size=config["intermediate_size"],
        num_heads=heads,
        num_kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=(config.get("head_dim") if family != "qwen2" else None) or width // heads,
        vocab_size=config["vocab_size"],
        rms_norm_eps=float(config["rms_norm_eps"]),
        rope_theta=_rope_theta(config),
        rope_scaling=scaling if rope_type(scaling) != "default" else None,
        context_length=int(config.get("max_position_embeddings") or 2048),
        tied=bool(config.get("tie_word_embeddings", True)),
        qkv_bias=family == "qwen2" or bias,
        o_bias=bias,
        mlp_bias=bool(config.get("mlp_bias", False)) and llama,
        qk_norm=family == "qwen3",
        quantization=config.get("quantization"),
    )
    if dims.num_heads % dims.num_kv_heads or dims.head_dim % 2:
        raise ValueError(
            f"config.json: got {dims.num_heads} heads, {dims.num_kv_heads} key heads, head_dim {dims.head_dim}; "
            "expected a multiple of the key heads and an even head_dim"
        )
    return dims
