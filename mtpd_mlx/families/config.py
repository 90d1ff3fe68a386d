"""`read_dims`, `mlx_arguments`: from config.json to Dims, and to the arguments that mlx-lm builds the model from.
Called by model/base.py, the exporter, inspection and checkpoints."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mtpd_mlx.families.dims import Dims, Layer
from mtpd_mlx.families.experts import glm_arguments, read_experts
from mtpd_mlx.families.gemma4 import check_gemma4, is_gemma4
from mtpd_mlx.families.hybrid import ATTENTION, hybrid_arguments, read_recurrent, spelt_out
from mtpd_mlx.families.layers import FULL, SLIDING, read_layers
from mtpd_mlx.families.multimodal import text_config
from mtpd_mlx.families.rotary import read_rotary, rope_type
from mtpd_mlx.families.table import ACTIVATIONS, FAMILIES, Family
from mtpd_mlx.files.json_object import read_json_object

MAX_CONFIG_BYTES, MAX_LAYERS = 4 << 20, 10_000
GRANITE = ("granite", "granitemoehybrid")
WRONG = (KeyError, TypeError, AttributeError, IndexError, ZeroDivisionError, OverflowError)


def read_config_json(folder: Path) -> dict[str, Any]:
    """`folder`/config.json as a dictionary; of a multimodal model the part of its text (multimodal.py).

    ValueError in one line where it is missing, too large or no JSON object.
    """
    file = folder / "config.json"
    if not file.is_file():
        raise ValueError(f"{folder}: no config.json in it")
    return text_config(read_json_object(file, limit=MAX_CONFIG_BYTES))


def group_size_of(quantization: Mapping[str, Any] | None, matrix: str) -> int:
    """Columns that share a scale in `matrix` (a tensor's name without .weight), by config.json's "quantization"."""
    own = (quantization or {}).get(matrix)
    size = (own if isinstance(own, dict) else quantization or {}).get("group_size", 64)
    if type(size) is not int or size < 1:
        raise ValueError(f"quantization: group_size: got {str(size)[:40]!r}, expected a positive integer")
    return size


def family_of(config: dict[str, Any]) -> Family:
    """ValueError names what is supported."""
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise ValueError(f"model_type {kind!r} is not supported; supported: {', '.join(FAMILIES)}")
    if config.get("model_file") or (config.get("auto_map") and not config.get("architectures")):
        raise ValueError("this model brings code of its own, which is never run")
    return FAMILIES[kind]


def read_dims(config: dict[str, Any], tied: bool | None = None) -> Dims:
    """`tied`: what the weights say, which counts; None: there are none, and the config says. ValueError in one line on what
    cannot be expressed."""
    family = family_of(config)
    try:
        return _dims(spelt_out(config), family, tied)
    except KeyError as error:
        raise ValueError(f"config.json: missing key {error}") from error
    except WRONG as error:
        raise ValueError(f"config.json: a value has the wrong type ({str(error).splitlines()[0]})") from error
    except ValueError as error:
        raise ValueError(f"config.json: {str(error).splitlines()[0]}") from error


def _size(config: dict[str, Any], name: str, default: int | None = None) -> int:
    value = config[name] if default is None else config.get(name) or default
    if type(value) is not int or not 1 <= value < 1 << 31:
        raise ValueError(f"{name}: got {value!r}, expected a positive integer")
    return value


def _dims(config: dict[str, Any], family: Family, tied: bool | None) -> Dims:
    _check_switches(config, family)
    width, heads = _size(config, "hidden_size"), _size(config, "num_attention_heads")
    head_dim = _size(config, "head_dim", width // heads) if family.head_dim else width // heads
    if not family.head_dim and config.get("head_dim") not in (None, head_dim):
        raise ValueError(f"head_dim: got {config['head_dim']}, expected {head_dim} (hidden_size / num_attention_heads)")
    rotary, count = read_rotary(config, family), _size(config, "num_hidden_layers")
    if count > MAX_LAYERS:
        raise ValueError(f"num_hidden_layers: got {count}, expected at most {MAX_LAYERS}")
    layers, experts = read_layers(config, family, count, rotary.local_theta is not None), read_experts(config)
    scale = config.get("query_pre_attn_scalar", 256) if family.module.startswith("gemma") else head_dim
    scale = 1.0 if is_gemma4(config) else scale
    granite = config["model_type"] in GRANITE
    told = config.get("tie_word_embeddings")
    biases = [name in family.biases and bool(config.get(name, False)) for name in ("attention_bias", "mlp_bias")]
    dims = Dims(
        model_type=config["model_type"],
        hidden_size=width,
        num_layers=count,
        intermediate_size=_size(config, "intermediate_size"),
        num_heads=heads,
        num_kv_heads=_size(config, "num_key_value_heads", heads),
        head_dim=head_dim,
        vocab_size=_size(config, "vocab_size"),
        rms_norm_eps=float(config.get("rms_norm_eps") or family.eps),
        rope_theta=rotary.theta,
        rope_scaling=rotary.scaling,
        context_length=_context_length(config, rotary.scaling),
        tied=tied if tied is not None else family.tied if told is None else bool(told),
        qkv_bias=family.qkv_bias or biases[0],
        o_bias=family.o_bias or (biases[0] and family.biased_output),
        mlp_bias=biases[1],
        qk_norm=None if family.optional_norms and not config.get("use_qk_norm") else family.qk_norm,
        quantization=config.get("quantization"),
        layers=layers,
        head_layer=_head_layer(layers, experts is not None),
        rotary_dim=int(head_dim * rotary.share),
        local_theta=rotary.local_theta,
        norms=family.norms,
        norm_offset=family.norm_offset,
        activation=family.activation,
        fused=family.fused,
        attention_scale=float(config.get("attention_multiplier", 1.0)) if granite else float(scale) ** -0.5,
        embedding_scale=_embedding_scale(config, family, width),
        residual_scale=float(config.get("residual_multiplier", 1.0)) if granite else 1.0,
        logits_scale=1.0 / float(config.get("logits_scaling", 1.0)) if granite else 1.0,
        attention_softcap=_softcap(config, "attn_logit_softcapping", 50.0),
        logits_softcap=_logits_softcap(config),
        experts=experts,
        query_growth=_query_growth(config, rotary.scaling),
        value_norm=family.value_norm,
        layer_scale=family.layer_scale,
        sinks=family.sinks,
        gated=family.gated,
        recurrent=read_recurrent(config),
    )
    if (
        dims.num_heads % dims.num_kv_heads
        or dims.num_heads % dims.geometry(dims.head_layer).num_kv_heads
        or dims.rotary_dim % 2
        or dims.rotary_dim < 2
    ):
        raise ValueError(
            f"got {dims.num_heads} heads, {dims.num_kv_heads} key heads, {dims.rotary_dim} rotated dimensions; "
            "expected a multiple of the key heads and an even number"
        )
    return dims


def _head_layer(layers: tuple[Layer, ...], experts: bool) -> Layer:
    """Heads are blocks of the last kind that attends, and attend to all positions; where blocks hold one branch each, the last
    of those and the last MLP."""
    last = [layer for layer in layers if layer.mixer == ATTENTION][-1]
    alone = [layer for layer in layers if layer.mixer == "mlp"]
    return Layer(
        None,
        "none" if all(layer.rope == "none" for layer in layers) else "global",
        experts and (alone or [last])[-1].experts,
        "pair" if alone else ATTENTION,
        last.geometry,
    )


def _check_switches(config: dict[str, Any], family: Family) -> None:
    """Refuses what mlx-lm or transformers would pass over in silence."""
    own = (
        config.get("hidden_activation") or config.get("hidden_act") if family.activation != "silu" else config.get("hidden_act")
    )
    if own is not None and own not in ACTIVATIONS[family.activation]:
        raise ValueError(f"hidden_act: got {own!r}, expected {ACTIVATIONS[family.activation][0]}")
    for name in ("attention_bias", "mlp_bias"):
        if config.get(name) and name not in family.biases:
            raise ValueError(f"{name} is not supported in {config['model_type']}")
    if family.o_bias and config.get("attention_bias") is False:
        raise ValueError(f"attention_bias: got false, which is not supported in {config['model_type']}")
    if not isinstance(config.get("quantization"), dict | None):
        raise ValueError(f"quantization: got {str(config['quantization'])[:40]!r}, expected an object")
    if is_gemma4(config):
        check_gemma4(config)
        config = config | {"use_bidirectional_attention": None}
    for name in ("rope_traditional", "use_bidirectional_attention", "quantize_activations"):
        if config.get(name):
            raise ValueError(f"{name} is not supported")
    if config["model_type"] == "gemma3_text" and any(config.get(f"{n}_logit_softcapping") for n in ("attn", "final")):
        raise ValueError("soft-capping is not supported in gemma3_text")


def _context_length(config: dict[str, Any], scaling: dict[str, Any] | None) -> int:
    """longrope rotates short and long texts differently, and caches hold one kind: that of short texts."""
    length = _size(config, "max_position_embeddings", 2048)
    if rope_type(scaling) in ("longrope", "su"):
        assert scaling is not None
        return min(length, _size(scaling, "original_max_position_embeddings"))
    return length


def _embedding_scale(config: dict[str, Any], family: Family, width: int) -> float:
    if family.module.startswith("gemma"):
        return math.sqrt(width)
    return float(config.get("embedding_multiplier", 1.0)) if config["model_type"] in GRANITE else 1.0


def _softcap(config: dict[str, Any], name: str, default: float) -> float | None:
    if config["model_type"] != "gemma2":
        return None
    if (value := config.get(name, default)) is None:
        raise ValueError(f"{name}: got null, expected a number")
    return float(value)


def _logits_softcap(config: dict[str, Any]) -> float | None:
    if is_gemma4(config):
        value = config.get("final_logit_softcapping")
        return None if value is None else float(value)
    return _softcap(config, "final_logit_softcapping", 30.0)


def _query_growth(config: dict[str, Any], scaling: dict[str, Any] | None) -> tuple[float, int] | None:
    if config["model_type"] != "ministral3":
        return None
    if not scaling or "llama_4_scaling_beta" not in scaling:
        raise ValueError("rope_parameters: missing key 'llama_4_scaling_beta'")
    return float(scaling["llama_4_scaling_beta"]), _size(scaling, "original_max_position_embeddings")


def mlx_arguments(config: dict[str, Any], dims: Dims) -> dict[str, Any]:
    """What mlx-lm's module is built from: `config` with everything spelt out that mlx-lm would guess differently.

    Rotary embeddings and windows are not among it: the adapter sets them from `dims`.
    """
    family, config = FAMILIES[dims.model_type], spelt_out(config)
    values: dict[str, Any] = {
        "model_type": family.module,
        "architectures": [],
        "num_key_value_heads": dims.num_kv_heads,
        "max_position_embeddings": config.get("max_position_embeddings") or 2048,
        "rms_norm_eps": dims.rms_norm_eps,
        "rope_theta": dims.rope_theta,
        "rope_scaling": None,
        "tie_word_embeddings": dims.tied,
        "sliding_window": None,
    }
    if family.head_dim:
        values["head_dim"] = dims.head_dim
    if family.module in ("olmo3", "gpt_oss"):  # their modules want both kinds
        values |= {"sliding_window": 1, "layer_types": [SLIDING] + [FULL] * (dims.num_layers - 1)}
    elif is_gemma4(config):
        wide = dims.geometry(dims.head_layer)
        values |= {"layer_types": [FULL if layer.geometry else SLIDING for layer in dims.layers]}
        values |= {"global_head_dim": wide.head_dim, "num_global_key_value_heads": wide.num_kv_heads}
        values |= {"attention_k_eq_v": not wide.own_values, "hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0}
        values |= {"rope_parameters": None, "sliding_window": 1, "enable_moe_block": dims.experts is not None}
    elif family.module not in ("gemma2", "gemma3_text"):
        values["layer_types"] = [FULL] * dims.num_layers
    if family.module == "gemma3_text":
        values |= {"sliding_window": 1, "sliding_window_pattern": 1, "rope_local_base_freq": dims.local_theta}
    if dims.experts is not None:
        values |= {"num_experts": dims.experts.count, "num_local_experts": dims.experts.count}
        values |= {"num_experts_per_tok": dims.experts.chosen, "norm_topk_prob": dims.experts.normalized}
        values |= {"decoder_sparse_step": config.get("decoder_sparse_step", 1)}
        values |= {"mlp_only_layers": config.get("mlp_only_layers") or []}
    if dims.experts is not None and dims.experts.sigmoid:
        values |= glm_arguments(config, dims.experts)
    if dims.query_growth is not None:
        values["rope_parameters"] = dict(dims.rope_scaling or {}) | {"rope_theta": dims.rope_theta}
    defaults = {"attention_bias": False, "mlp_bias": False, "logits_scaling": 1.0, "attention_multiplier": 1.0}
    defaults |= {"embedding_multiplier": 1.0, "residual_multiplier": 1.0, "query_pre_attn_scalar": 256}
    return {k: v for k, v in defaults.items() if config.get(k) is None} | values | hybrid_arguments(config)
