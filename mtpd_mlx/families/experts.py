"""`read_experts`: mixtures in a config.json (sizes, names in checkpoints, which layers have them).
Called by families/config.py and layers.py."""

from dataclasses import replace
from typing import Any

from mtpd_mlx.families.dims import Experts
from mtpd_mlx.families.gemma4 import is_gemma4
from mtpd_mlx.families.hybrid import size_of

QWEN_HYBRIDS = ("qwen3_next", "qwen3_5_moe_text")


def read_experts(config: dict[str, Any]) -> Experts | None:
    """The mixture of a config.json; None for a dense model. ValueError for a number out of range."""
    if config["model_type"] == "mixtral":
        sizes, path, names = (_count(config), 2, "intermediate_size"), "block_sparse_moe", ("w1", "w3", "w2")
        return Experts(*_checked(config, *sizes), True, path, names)
    if config["model_type"] == "qwen3_moe":
        sizes, normalized = (_count(config), 8, "moe_intermediate_size"), bool(config.get("norm_topk_prob", False))
        names = ("gate_proj", "up_proj", "down_proj")
        return Experts(*_checked(config, *sizes), normalized, "mlp", names)
    if config["model_type"] in QWEN_HYBRIDS and config.get("num_experts", 1):
        sizes, names = (_count(config), 8, "moe_intermediate_size"), ("gate_proj", "up_proj", "down_proj")
        normalized = config["model_type"] != "qwen3_next" or bool(config.get("norm_topk_prob", True))
        count, chosen, size = _checked(config, *sizes)
        shared = size_of(config, "shared_expert_intermediate_size")
        named = replace(Experts(count, chosen, size, normalized, "mlp", names), shared_name="shared_expert")
        return replace(named, shared=shared, shared_gate=True)
    if config["model_type"] == "lfm2_moe":
        sizes, normalized = (_count(config), 4, "moe_intermediate_size"), bool(config.get("norm_topk_prob", True))
        read = Experts(*_checked(config, *sizes), normalized, "feed_forward", ("w1", "w3", "w2"))
        scaling = float(config.get("routed_scaling_factor", 1.0))
        return replace(read, sigmoid=bool(config.get("use_expert_bias", True)), correction="expert_bias", scaling=scaling)
    if config["model_type"] == "glm4_moe":
        count, chosen, size = _checked(config, _routed(config), 8, "moe_intermediate_size")
        names, normalized = ("gate_proj", "up_proj", "down_proj"), bool(config.get("norm_topk_prob", True))
        shared = size * config.get("n_shared_experts", 1)
        read = Experts(count, chosen, size, normalized, "mlp", names, shared=shared, sigmoid=True)
        groups, best = (size_of(config, name, 1) for name in ("n_group", "topk_group"))
        return replace(read, groups=groups, chosen_groups=best, scaling=float(config.get("routed_scaling_factor", 1.0)))
    if is_gemma4(config) and config.get("enable_moe_block"):
        told, sizes = config | {"num_experts_per_tok": config["top_k_experts"]}, (_count(config), 1, "moe_intermediate_size")
        names = ("gate_proj", "up_proj", "down_proj")
        return Experts(*_checked(told, *sizes), True, "", names, "router.proj", "experts.switch_glu", fused=True, parallel=True)
    if config["model_type"] == "granitemoehybrid" and config.get("num_local_experts"):
        sizes, names = (_count(config), 2, "moe_intermediate_size"), ("gate_proj", "up_proj", "down_proj")
        read = Experts(*_checked(config, *sizes), True, "block_sparse_moe", names, "router.layer", fused=True, beside=True)
        return replace(read, joined=("input_linear.weight", "output_linear.weight"))
    if config["model_type"] == "nemotron_h" and "moe" in config["layer_types"]:
        count, chosen, size = _checked(config, size_of(config, "n_routed_experts", 8), 2, "moe_intermediate_size")
        read = Experts(count, chosen, size, bool(config.get("norm_topk_prob", True)), "mixer", ("up_proj", "down_proj"))
        latent = size_of(config, "moe_latent_size") if config.get("moe_latent_size") is not None else None
        shared = size_of(config, "moe_shared_expert_intermediate_size", 7688)
        return replace(read, parts=("fc1", "fc2"), shared=shared, sigmoid=True, latent=latent)
    if config["model_type"] == "gpt_oss":  # the softmax is over the chosen ones' scores, which is the same as normalising
        sizes, names = (_count(config), 4, "intermediate_size"), ("gate_proj", "up_proj", "down_proj")
        clip = float(config.get("swiglu_alpha", 1.702)), float(config.get("swiglu_limit", 7.0))
        return Experts(*_checked(config, *sizes), True, "mlp", names, "router", "experts", fused=True, bias=True, clip=clip)
    return None


def _checked(config: dict[str, Any], count: int, chosen: int, size_name: str) -> tuple[int, int, int]:
    """count, how many work on a token (where config.json does not say: `chosen`), size."""
    told, size = config.get("num_experts_per_tok", chosen), config[size_name]
    if type(told) is not int or not 1 <= told <= count:
        raise ValueError(f"num_experts_per_tok: got {str(told)[:40]!r}, expected 1..{count}")
    if type(size) is not int or not 1 <= size < 1 << 31:
        raise ValueError(f"{size_name}: got {str(size)[:40]!r}, expected a positive integer")
    return count, told, size


def _count(config: dict[str, Any]) -> int:
    """transformers 5 calls num_experts num_local_experts."""
    count = config.get("num_experts") or config.get("num_local_experts")
    if count is None:
        raise ValueError("missing key 'num_experts'")
    if type(count) is not int or count < 1:
        raise ValueError(f"num_experts: got {count!r}, expected a positive integer")
    return count


def has_experts(config: dict[str, Any], layer: int) -> bool:
    """Whether the MLP of a layer is a mixture."""
    if config["model_type"] in ("mixtral", "gpt_oss"):
        return True
    if config["model_type"] == "glm4_moe":
        return bool(layer >= config.get("first_k_dense_replace", 1))
    if is_gemma4(config):
        return bool(config.get("enable_moe_block"))
    if config["model_type"] == "qwen3_5_moe_text":
        return True
    if config["model_type"] == "granitemoehybrid":
        return bool(config.get("num_local_experts"))
    if config["model_type"] == "nemotron_h":
        return bool(config["layer_types"][layer] == "moe")
    if config["model_type"] == "lfm2_moe":
        return bool(layer >= config.get("num_dense_layers", 2))
    if config["model_type"] not in ("qwen3_moe", "qwen3_next") or not config.get("num_experts", 1):
        return False
    return layer not in (config.get("mlp_only_layers") or []) and (layer + 1) % config.get("decoder_sparse_step", 1) == 0


def _routed(config: dict[str, Any]) -> int:
    return _count({"num_experts": config.get("n_routed_experts") or config.get("num_local_experts") or 128})


def glm_arguments(config: dict[str, Any], experts: Experts) -> dict[str, Any]:
    """What mlx-lm's module of GLM-4.5 wants beyond config.json, with what transformers assumes. ValueError for what it would
    pass over."""
    for name, wanted in {"scoring_func": "sigmoid", "topk_method": "noaux_tc"}.items():
        if config.get(name, wanted) != wanted:
            raise ValueError(f"{name}: got {str(config[name])[:40]!r}, expected {wanted}")
    values = {"n_group": 1, "topk_group": 1, "routed_scaling_factor": 1.0, "first_k_dense_replace": 1, "n_shared_experts": 1}
    values = {name: config.get(name, default) for name, default in values.items()}
    values |= {"n_routed_experts": experts.count, "use_qk_norm": bool(config.get("use_qk_norm"))}
    return values | {"norm_topk_prob": experts.normalized, "partial_rotary_factor": 0.5}  # rotation is the adapter's
