"""`read_mixers`, `read_recurrent`: families with attention in some layers and a recurrence in the others.
Called by families/config.py, experts.py and layers.py."""

import math
from collections.abc import Callable
from typing import Any

from mtpd_mlx.families.dims import Recurrent

ATTENTION, FULL = "attention", "full_attention"


def spelt_out(config: dict[str, Any]) -> dict[str, Any]:
    """The config.json of a hybrid family under the names that other families use; others as they are."""
    spell = SPELLINGS.get(config["model_type"])
    return config if spell is None else spell(config)


def read_mixers(config: dict[str, Any], count: int) -> tuple[str, ...]:
    """Of each layer "attention" or the kind of the recurrence. `config`: spelt out."""
    if config["model_type"] not in RECURRENCES:
        return (ATTENTION,) * count
    kinds = config["layer_types"]
    if not isinstance(kinds, list) or len(kinds) != count:
        got = len(kinds) if isinstance(kinds, list) else repr(kinds)[:40]
        raise ValueError(f"layer_types: got {got} entries, expected {count}")
    names = NAMES_OF[config["model_type"]]
    if unknown := sorted({str(kind) for kind in kinds} - names.keys()):
        raise ValueError(f"layer_types: got {unknown[0]!r}, expected {' or '.join(names)}")
    if ATTENTION not in (names[kind] for kind in kinds):
        raise ValueError("layer_types: got no attention layer, expected one: heads are of its kind")
    return tuple(names[kind] for kind in kinds)


def read_recurrent(config: dict[str, Any]) -> Recurrent | None:
    """What the layers without attention are. `config`: spelt out."""
    read = RECURRENCES.get(config["model_type"])
    names = NAMES_OF.get(config["model_type"], {})
    if read is None or all(names.get(kind) in (ATTENTION, "mlp") for kind in config["layer_types"]):
        return None
    return read(config)


def hybrid_arguments(config: dict[str, Any]) -> dict[str, Any]:
    """What mlx-lm's modules of hybrid families want beyond config.json as it is. `config`: spelt out."""
    if config["model_type"] not in RECURRENCES:
        return {}
    values: dict[str, Any] = {"layer_types": config["layer_types"]}
    if config["model_type"] == "lfm2_moe":
        names: dict[str, Any] = {
            "moe_intermediate_size": 1792,
            "num_experts": 32,
            "num_experts_per_tok": 4,
            "use_expert_bias": True,
        }
        names |= {"num_dense_layers": 2, "routed_scaling_factor": 1.0, "norm_topk_prob": True}
        values |= {name: config.get(name, default) for name, default in names.items()}
    if config["model_type"] in ("lfm2", "lfm2_moe"):
        size = config["intermediate_size"]
        values |= {"norm_eps": config["rms_norm_eps"], "block_dim": config["hidden_size"], "block_ff_dim": size}
        values |= {"block_multiple_of": 1, "block_ffn_dim_multiplier": 1.0, "block_auto_adjust_ff_dim": False}
        values |= {"intermediate_size": size, "full_attn_idxs": None, "rope_parameters": None}
        values |= {"conv_bias": bool(config.get("conv_bias")), "conv_L_cache": config.get("conv_L_cache", 3)}
    if config["model_type"] == "granitemoehybrid":
        recurrent = _granite_mamba(config)
        size = config["moe_intermediate_size" if config.get("num_local_experts") else "intermediate_size"]
        values |= {"intermediate_size": size, "mamba_n_heads": recurrent.heads}
        values |= {"mamba_d_head": recurrent.value, "mamba_d_state": recurrent.key, "mamba_n_groups": recurrent.groups}
        values |= {"mamba_d_conv": recurrent.kernel, "mamba_proj_bias": recurrent.bias, "mamba_conv_bias": recurrent.conv_bias}
        values |= {"time_step_limit": recurrent.step_limit, "position_embedding_type": "nope", "rope_parameters": None}
    if config["model_type"] == "nemotron_h":
        recurrent = _nemotron_mamba(config)
        signs = {kind: sign for sign, kind in PATTERN.items()}
        values = {"hybrid_override_pattern": [signs[kind] for kind in config["layer_types"]], "layer_types": None}
        values |= {"layers_block_type": None, "mamba_num_heads": recurrent.heads, "mamba_head_dim": recurrent.value}
        values |= {"ssm_state_size": recurrent.key, "n_groups": recurrent.groups, "conv_kernel": recurrent.kernel}
        values |= {"mamba_proj_bias": recurrent.bias, "use_conv_bias": recurrent.conv_bias, "use_bias": False}
        values |= {"time_step_limit": recurrent.step_limit, "layer_norm_epsilon": config["rms_norm_eps"]}
        values |= {"moe_shared_expert_intermediate_size": config.get("moe_shared_expert_intermediate_size", 7688)}
    if config["model_type"].startswith("qwen3"):
        values |= {"full_attention_interval": _interval(config["layer_types"]), "partial_rotary_factor": 0.25}
        values |= {"rope_parameters": {"type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.25}}  # the adapter's
    return values


def _interval(kinds: list[str]) -> int:
    """mlx-lm's modules of Qwen take attention in every so many layers alone."""
    every = kinds.index(FULL) + 1
    if kinds != [FULL if (i + 1) % every == 0 else "linear_attention" for i in range(len(kinds))]:
        raise ValueError(f"layer_types: expected {FULL} in every {every}th layer and in no other, as in the first {every}")
    return every


def size_of(config: dict[str, Any], name: str, default: int | None = None) -> int:
    """A positive integer of config.json. ValueError in one line."""
    value = config[name] if default is None else config.get(name, default)
    if type(value) is not int or not 1 <= value < 1 << 31:
        raise ValueError(f"{name}: got {str(value)[:40]!r}, expected a positive integer")
    return value


def _lfm2(config: dict[str, Any]) -> dict[str, Any]:
    """transformers' names (norm_eps, tie_embedding, block_ff_dim) and its rule for the size of the feed-forward layers."""
    count, attention = config["num_hidden_layers"], config.get("full_attn_idxs")
    chosen = range(count) if attention is None else attention
    kinds = config.get("layer_types") or [FULL if i in chosen else "conv" for i in range(count)]
    size = size_of(config, "block_ff_dim" if config.get("block_ff_dim") else "intermediate_size")
    if config.get("block_auto_adjust_ff_dim", config["model_type"] == "lfm2"):
        size, multiple = 2 * size // 3, size_of(config, "block_multiple_of", 256)
        factor = config.get("block_ffn_dim_multiplier", 1.0)
        size = size if factor is None else multiple * -(-int(factor * size) // multiple)
    told = {"rms_norm_eps": config.get("norm_eps", 1e-5), "layer_types": kinds, "intermediate_size": size}
    if "tie_embedding" in config:
        told["tie_word_embeddings"] = config["tie_embedding"]
    return config | told


def _convolution(config: dict[str, Any]) -> Recurrent:
    bias = bool(config.get("conv_bias"))
    return Recurrent("conv", size_of(config, "conv_L_cache", 3), size_of(config, "hidden_size"), bias=bias, conv_bias=bias)


def _qwen(config: dict[str, Any]) -> dict[str, Any]:
    """What transformers assumes: attention in every fourth layer, a quarter of each head rotated."""
    count, every = config["num_hidden_layers"], size_of(config, "full_attention_interval", 4)
    kinds = [FULL if (i + 1) % every == 0 else "linear_attention" for i in range(count)]
    told = {"layer_types": config.get("layer_types") or kinds}
    nested = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not (config.get("partial_rotary_factor") or nested.get("partial_rotary_factor")):
        told["partial_rotary_factor"] = 0.25
    if "intermediate_size" not in config and "shared_expert_intermediate_size" in config:
        told["intermediate_size"] = config["shared_expert_intermediate_size"]  # no layer has a dense MLP alone
    return config | told


def _delta_net(config: dict[str, Any]) -> Recurrent:
    names = ("num_key_heads", "num_value_heads", "key_head_dim", "value_head_dim", "conv_kernel_dim")
    groups, heads, key, value, kernel = (size_of(config, f"linear_{name}") for name in names)
    if heads % groups:
        raise ValueError(f"linear_num_value_heads: got {heads}, expected a multiple of {groups}, the key heads")
    kind = "joined_delta" if config["model_type"] == "qwen3_next" else "delta"
    return Recurrent(kind, kernel, 2 * groups * key + heads * value, heads, value, key, groups)


def _granite(config: dict[str, Any]) -> dict[str, Any]:
    """transformers calls the layers "linear_attention" and "full_attention", the published ones "mamba" and "attention".
    intermediate_size is the size of experts there, and of the dense MLP here."""
    kinds = config.get("layer_types") or ["mamba"] * config["num_hidden_layers"]
    names = {"linear_attention": "mamba", FULL: ATTENTION}
    kinds = [names.get(kind, kind) for kind in kinds] if isinstance(kinds, list) else kinds
    told = {"layer_types": kinds, "intermediate_size": config.get("shared_intermediate_size", 1024)}
    return config | told | ({"moe_intermediate_size": config["intermediate_size"]} if config.get("num_local_experts") else {})


def _granite_mamba(config: dict[str, Any]) -> Recurrent:
    heads, key, groups = (size_of(config, f"mamba_{n}", d) for n, d in (("n_heads", 128), ("d_state", 256), ("n_groups", 1)))
    value = config.get("mamba_d_head", "auto")
    if value == "auto":
        value = size_of(config, "mamba_expand", 2) * size_of(config, "hidden_size") // heads
    if heads % groups:
        raise ValueError(f"mamba_n_heads: got {heads}, expected a multiple of {groups}, mamba_n_groups")
    channels, limit = heads * size_of({"mamba_d_head": value}, "mamba_d_head") + 2 * groups * key, _step_limit(config)
    bias, conv = bool(config.get("mamba_proj_bias", False)), bool(config.get("mamba_conv_bias", True))
    return Recurrent("mamba", size_of(config, "mamba_d_conv", 4), channels, heads, value, key, groups, bias, conv, limit)


def _step_limit(config: dict[str, Any]) -> tuple[float, float]:
    """time_step_limit, whose infinity transformers writes as an object."""
    told = config.get("time_step_limit") or (0.0, math.inf)
    ends = [math.inf if isinstance(end, dict) and end.get("__float__") == "Infinity" else end for end in told]
    if len(ends) != 2 or not all(isinstance(end, int | float) for end in ends):
        raise ValueError(f"time_step_limit: got {str(told)[:40]}, expected two numbers")
    return float(ends[0]), float(ends[1])


PATTERN = {"M": "mamba", "*": ATTENTION, "-": "mlp", "E": "moe"}


def block_list(config: dict[str, Any]) -> list[str]:
    """Nemotron-H's blocks by what they hold, from a pattern as "M-M*" or a list of either time's names."""
    told = config.get("layers_block_type") or config.get("layer_types") or config.get("hybrid_override_pattern")
    if not isinstance(told, list | str) or not told:
        raise ValueError(f"layers_block_type: got {str(told)[:40]!r}, expected a list")
    names = PATTERN | {"linear_attention": "mamba", FULL: ATTENTION, "conv": "mamba"}
    return [names.get(kind, kind) for kind in told]


def _nemotron(config: dict[str, Any]) -> dict[str, Any]:
    kinds = block_list(config)
    if config.get("use_bias"):
        raise ValueError("use_bias is not supported in nemotron_h")
    eps = config.get("layer_norm_epsilon", config.get("norm_eps", 1e-5))
    told = {"rms_norm_eps": eps, "hidden_act": config.get("mlp_hidden_act", "relu2"), "layer_types": kinds}
    if "mlp" not in kinds and "moe" not in kinds:
        raise ValueError("layers_block_type: got no mlp and no moe block, expected one: heads have one like it")
    if "moe" in kinds and config.get("mlp_bias"):
        raise ValueError("mlp_bias is not supported beside experts in nemotron_h")
    told |= {"intermediate_size": config.get("intermediate_size", 21504)}
    return config | told | {"num_hidden_layers": len(kinds), "head_dim": config.get("head_dim", 128)}


def _nemotron_mamba(config: dict[str, Any]) -> Recurrent:
    names = {"mamba_num_heads": 128, "mamba_head_dim": 64, "ssm_state_size": 128, "n_groups": 8, "conv_kernel": 4}
    heads, value, key, groups, kernel = (size_of(config, name, default) for name, default in names.items())
    if heads % groups:
        raise ValueError(f"mamba_num_heads: got {heads}, expected a multiple of {groups}, n_groups")
    bias, conv = bool(config.get("mamba_proj_bias", False)), bool(config.get("use_conv_bias", True))
    channels = heads * value + 2 * groups * key
    return Recurrent("mamba", kernel, channels, heads, value, key, groups, bias, conv, _step_limit(config), "mixer")


SPELLINGS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "lfm2": _lfm2,
    "lfm2_moe": _lfm2,
    "qwen3_5_text": _qwen,
    "qwen3_5_moe_text": _qwen,
    "qwen3_next": _qwen,
    "granitemoehybrid": _granite,
    "nemotron_h": _nemotron,
}
RECURRENCES: dict[str, Callable[[dict[str, Any]], Recurrent]] = {
    "lfm2": _convolution,
    "lfm2_moe": _convolution,
    "qwen3_5_text": _delta_net,
    "qwen3_5_moe_text": _delta_net,
    "qwen3_next": _delta_net,
    "granitemoehybrid": _granite_mamba,
    "nemotron_h": _nemotron_mamba,
}
NAMES_OF: dict[str, dict[str, str]] = {
    "lfm2": {"conv": "conv", FULL: ATTENTION},
    "lfm2_moe": {"conv": "conv", FULL: ATTENTION},
    "qwen3_5_text": {"linear_attention": "delta", FULL: ATTENTION},
    "qwen3_5_moe_text": {"linear_attention": "delta", FULL: ATTENTION},
    "qwen3_next": {"linear_attention": "joined_delta", FULL: ATTENTION},
    "granitemoehybrid": {"mamba": "mamba", ATTENTION: ATTENTION},
    "nemotron_h": {"mamba": "mamba", ATTENTION: ATTENTION, "mlp": "mlp", "moe": "mlp"},
}
