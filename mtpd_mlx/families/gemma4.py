"""`check_gemma4`, `global_geometry`: Gemma 4's wider heads in global layers, and its unsupported parts.
Called by families/config.py, experts.py and layers.py."""

from typing import Any

from mtpd_mlx.families.dims import Geometry

MODELS = ("gemma4_text", "gemma4_unified_text")
FIELDS = ("head_dim", "num_key_value_heads")


def is_gemma4(config: dict[str, Any]) -> bool:
    return config.get("model_type") in MODELS


def check_gemma4(config: dict[str, Any]) -> None:
    """ValueError for the E2B and E4B models, whose layers take inputs and keys of their own kind."""
    defaults = {"hidden_size_per_layer_input": 256 if config["model_type"] == "gemma4_text" else 0, "num_kv_shared_layers": 0}
    for name, default in defaults.items():
        if value := config.get(name, default):
            raise ValueError(f"{name}: got {str(value)[:40]!r}, which is not supported (Gemma 4 E2B and E4B), expected 0")
    if config.get("use_bidirectional_attention") not in (None, False, "vision"):  # of text alone "vision" changes nothing
        raise ValueError("use_bidirectional_attention is not supported")


def global_geometry(config: dict[str, Any], first: int) -> Geometry:
    """Of layers that attend to all positions, the first of which is layer `first`. transformers writes what differs by layer in
    per_layer_config; published files have global_head_dim and num_global_key_value_heads."""
    shared = bool(config.get("attention_k_eq_v"))
    told = config.get("per_layer_config")
    if isinstance(told, dict) and told:
        own = told.get(str(first))
        if not isinstance(own, dict) or any(other != own for other in told.values()) or own.keys() - set(FIELDS):
            raise ValueError(
                f"per_layer_config: got {str(told)[:40]!r}, expected {' and '.join(FIELDS)}, one for global layers"
            )
        head_dim, heads = (own.get(name, config.get(name)) for name in FIELDS)
    else:
        head_dim = config.get("global_head_dim") or 512
        heads = (config.get("num_global_key_value_heads") if shared else None) or config.get("num_key_value_heads")
    for name, value in (("global_head_dim", head_dim), ("num_global_key_value_heads", heads)):
        if type(value) is not int or value < 1:
            raise ValueError(f"{name}: got {str(value)[:40]!r}, expected a positive integer")
    return Geometry(head_dim, heads, head_dim, own_values=not shared)  # type: ignore[arg-type]  # checked above
