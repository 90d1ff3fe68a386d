"""Windows, rotation and experts of each layer, by the rules that transformers applies."""

from typing import Any

from mtpd_mlx.families.dims import Experts, Layer
from mtpd_mlx.families.hybrid import RECURRENCES, read_mixers
from mtpd_mlx.families.table import Family

FULL, SLIDING = "full_attention", "sliding_attention"


def read_layers(config: dict[str, Any], family: Family, count: int, local: bool) -> tuple[Layer, ...]:
    """`local`: sliding layers have a rotary embedding of their own."""
    mixers = read_mixers(config, count)
    kinds = _kinds(config, family, count) if config["model_type"] not in RECURRENCES else [FULL] * count
    rotated, window = _rotated(config, count), _window(config, family)
    layers = []
    for i, kind in enumerate(kinds):
        rope = "none" if not rotated[i] else "local" if local and kind == SLIDING else "global"
        looks_back = window if family.windows == "all" or kind == SLIDING else None
        layers.append(Layer(looks_back, rope, _has_experts(config, i), mixers[i]))
    return tuple(layers)


def read_experts(config: dict[str, Any]) -> Experts | None:
    if config["model_type"] == "mixtral":
        sizes, path, names = (_count(config), 2, "intermediate_size"), "block_sparse_moe", ("w1", "w3", "w2")
        return Experts(*_checked(config, *sizes), True, path, names)
    if config["model_type"] == "qwen3_moe":
        sizes, normalized = (_count(config), 8, "moe_intermediate_size"), bool(config.get("norm_topk_prob", False))
        names = ("gate_proj", "up_proj", "down_proj")
        return Experts(*_checked(config, *sizes), normalized, "mlp", names)
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


def _has_experts(config: dict[str, Any], layer: int) -> bool:
    if config["model_type"] in ("mixtral", "gpt_oss"):
        return True
    if config["model_type"] != "qwen3_moe":
        return False
    return layer not in (config.get("mlp_only_layers") or []) and (layer + 1) % config.get("decoder_sparse_step", 1) == 0


def _rotated(config: dict[str, Any], count: int) -> list[bool]:
    """SmolLM3 leaves some layers without rotation (NoPE)."""
    if config["model_type"] != "smollm3":
        return [True] * count
    interval = config.get("no_rope_layer_interval") or 4
    flags = config.get("no_rope_layers") or [(i + 1) % interval != 0 for i in range(count)]
    if len(flags) != count:
        raise ValueError(f"no_rope_layers: got {len(flags)} entries, expected {count}")
    return [bool(flag) for flag in flags]


def _kinds(config: dict[str, Any], family: Family, count: int) -> list[str]:
    kinds = config.get("layer_types") or _default_kinds(config, count)
    if len(kinds) != count:
        raise ValueError(f"layer_types: got {len(kinds)} entries, expected {count}")
    unknown = sorted({str(kind) for kind in kinds} - {FULL, SLIDING})
    if unknown:
        raise ValueError(f"layer_types: got {unknown[0]!r}, expected {FULL} or {SLIDING}")
    if family.windows == "none" and SLIDING in kinds:
        raise ValueError(f"layer_types: transformers has no sliding windows in {config['model_type']}")
    return list(kinds)


def _window(config: dict[str, Any], family: Family) -> int | None:
    """The window of sliding layers; None where it never closes."""
    size = config.get("sliding_window", family.window)
    if size is None or (family.switched and not config.get("use_sliding_window")):
        return None
    if type(size) is not int or size < 1:
        raise ValueError(f"sliding_window: got {size!r}, expected a positive integer")
    if family.windows == "none":
        raise ValueError(f"sliding_window: transformers has no sliding windows in {config['model_type']}")
    return None if size >= config.get("max_position_embeddings", 1 << 62) else size


def _default_kinds(config: dict[str, Any], count: int) -> list[str]:
    """layer_types where config.json has none."""
    every = {"olmo3": 4, "gemma2": 2}.get(config["model_type"])
    if config["model_type"] == "gemma3_text":
        every = config.get("sliding_window_pattern") or config.get("_sliding_window_pattern") or 6
    if every is not None:
        return [FULL if (i + 1) % every == 0 else SLIDING for i in range(count)]
    if config["model_type"] == "ministral":
        return [SLIDING] * count
    if config["model_type"] == "gpt_oss":
        return [FULL if i % 2 else SLIDING for i in range(count)]
    if config["model_type"] in ("qwen2", "qwen3"):
        return [SLIDING if i >= config.get("max_window_layers", 28) else FULL for i in range(count)]
    if config["model_type"] == "smollm3" and config.get("use_sliding_window"):
        raise ValueError("missing key 'layer_types'")
    return [FULL] * count
