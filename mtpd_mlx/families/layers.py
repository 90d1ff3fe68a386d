"""`read_layers`: windows and rotation of each layer, by the rules that transformers applies.
Called by families/config.py, GGUF import and `mtpd export-heads`."""

from typing import Any

from mtpd_mlx.families.dims import Layer
from mtpd_mlx.families.experts import has_experts
from mtpd_mlx.families.gemma4 import global_geometry, is_gemma4
from mtpd_mlx.families.hybrid import RECURRENCES, read_mixers
from mtpd_mlx.families.table import Family

FULL, SLIDING = "full_attention", "sliding_attention"


def read_layers(config: dict[str, Any], family: Family, count: int, local: bool) -> tuple[Layer, ...]:
    """`local`: sliding layers have a rotary embedding of their own."""
    mixers = read_mixers(config, count)
    kinds = _kinds(config, family, count) if config["model_type"] not in RECURRENCES else [FULL] * count
    wide = global_geometry(config, kinds.index(FULL)) if is_gemma4(config) and FULL in kinds else None
    rotated, window = _rotated(config, count), _window(config, family)
    layers = []
    for i, kind in enumerate(kinds):
        rope = "none" if not rotated[i] else "local" if local and kind == SLIDING else "global"
        looks_back = window if family.windows == "all" or kind == SLIDING else None
        own = wide if kind == FULL else None
        layers.append(Layer(looks_back, rope, has_experts(config, i), mixers[i], own))
    return tuple(layers)


def _rotated(config: dict[str, Any], count: int) -> list[bool]:
    """SmolLM3 leaves some layers without rotation (NoPE), Granite 4 all of them unless it says "rope"."""
    if config["model_type"] == "nemotron_h":
        return [False] * count
    if config["model_type"] == "granitemoehybrid":
        return [config.get("position_embedding_type") == "rope"] * count
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
    if is_gemma4(config):
        return [*kinds[:-1], FULL]  # as transformers forces it
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
    every = {"olmo3": 4, "gemma2": 2, "gemma4_text": 6, "gemma4_unified_text": 6}.get(config["model_type"])
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
