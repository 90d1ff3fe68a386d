"""The mixtures of a config.json: sizes, names in checkpoints, and which layers have them. Called by config.py and layers.py."""

from typing import Any

from mtpd_mlx.families.dims import Experts
from mtpd_mlx.families.gemma4 import is_gemma4


def read_experts(config: dict[str, Any]) -> Experts | None:
    if config["model_type"] == "mixtral":
        sizes, path, names = (_count(config), 2, "intermediate_size"), "block_sparse_moe", ("w1", "w3", "w2")
        return Experts(*_checked(config, *sizes), True, path, names)
    if config["model_type"] == "qwen3_moe":
        sizes, normalized = (_count(config), 8, "moe_intermediate_size"), bool(config.get("norm_topk_prob", False))
        names = ("gate_proj", "up_proj", "down_proj")
        return Experts(*_checked(config, *sizes), normalized, "mlp", names)
    if is_gemma4(config) and config.get("enable_moe_block"):
        told, sizes = config | {"num_experts_per_tok": config["top_k_experts"]}, (_count(config), 1, "moe_intermediate_size")
        names = ("gate_proj", "up_proj", "down_proj")
        return Experts(*_checked(told, *sizes), True, "", names, "router.proj", "experts.switch_glu", fused=True, parallel=True)
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
    if is_gemma4(config):
        return bool(config.get("enable_moe_block"))
    if config["model_type"] != "qwen3_moe":
        return False
    return layer not in (config.get("mlp_only_layers") or []) and (layer + 1) % config.get("decoder_sparse_step", 1) == 0
