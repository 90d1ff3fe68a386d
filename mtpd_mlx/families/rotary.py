"""`read_rotary`: the rotary embedding of a config.json (rope_theta and rope_scaling, or rope_parameters).
Called by families/config.py, model/blocks.py and the exporter."""

import math
from dataclasses import dataclass
from typing import Any

from mtpd_mlx.families.table import Family

GPT_OSS = {"rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False}
GPT_OSS |= {"original_max_position_embeddings": 4096}
PROPORTIONAL = {"rope_type": "proportional", "partial_rotary_factor": 0.25}  # as transformers assumes for Gemma 4
NEED_ORIGINAL = ("yarn", "llama3", "longrope", "su")


@dataclass(frozen=True)
class Rotary:
    """Rotary embedding of a model: base period, scaling, the sliding layers' own period, share of rotated dimensions."""

    theta: float
    scaling: dict[str, Any] | None
    local_theta: float | None
    share: float  # of each head's dimensions that is rotated


def rope_type(scaling: dict[str, Any] | None) -> str:
    """The kind of scaling; "type" goes before "rope_type" as in mlx-lm."""
    return str(scaling.get("type") or scaling.get("rope_type") or "default") if scaling else "default"


def read_rotary(config: dict[str, Any], family: Family) -> Rotary:
    """ValueError where local layers are scaled, which no supported family does."""
    nested = config.get("rope_parameters") or {}
    local: dict[str, Any] = {}
    if "full_attention" in nested or "sliding_attention" in nested:
        nested, local = nested.get("full_attention") or {}, nested.get("sliding_attention") or {}
    if rope_type(local) != "default":
        raise ValueError(f"rope_parameters of sliding layers: got {rope_type(local)!r}, expected 'default'")
    theta = config.get("rope_theta") or nested.get("rope_theta") or family.theta
    own = {k: v for k, v in nested.items() if k not in ("rope_theta", "partial_rotary_factor")}
    assumed = 0.5 if config["model_type"] == "glm4_moe" else 1.0
    share = config.get("partial_rotary_factor") or nested.get("partial_rotary_factor") or assumed
    if family.module == "gemma4_text":
        own, share = _proportional(nested), 1.0
    scaling = config.get("rope_scaling") or own
    if config["model_type"] == "gpt_oss" and not nested and not scaling:  # as transformers assumes
        scaling = GPT_OSS
    kind = rope_type(scaling)
    if kind == "default":
        scaling = None
    elif kind in NEED_ORIGINAL and not scaling.get("original_max_position_embeddings"):
        original = config.get("original_max_position_embeddings") or config.get("max_position_embeddings")
        scaling = scaling | {"original_max_position_embeddings": original}
    if kind in ("longrope", "su") and scaling is not None:
        length = config.get("max_position_embeddings") or scaling["original_max_position_embeddings"]
        scaling = {"factor": length / scaling["original_max_position_embeddings"]} | scaling
    local_theta = local.get("rope_theta") or config.get("rope_local_base_freq")
    if family.module in ("gemma3_text", "gemma4_text"):
        local_theta = local_theta or 10000.0
    elif family.module == "olmo3":
        local_theta = local_theta or theta
    else:
        local_theta = None
    return Rotary(float(theta), scaling, None if local_theta is None else float(local_theta), float(share))


def _proportional(nested: dict[str, Any]) -> dict[str, Any]:
    """Gemma 4's global layers: all dimensions of a head are paired, and only the first share of the pairs is rotated."""
    kind = rope_type(nested or PROPORTIONAL)
    if kind != "proportional":
        raise ValueError(f"rope_parameters of full attention: got {kind!r}, expected 'proportional'")
    return PROPORTIONAL | {k: v for k, v in nested.items() if k != "rope_theta"}


def yarn_periods(theta: float, size: int, scaling: dict[str, Any]) -> list[float]:
    """What YaRN (arXiv 2309.00071) divides positions by for the angles of `size` dimensions, as transformers computes it: short
    periods as they are, long ones stretched by `factor`, a ramp between. `truncate`: the ramp's ends are whole numbers."""
    factor, original = scaling["factor"], scaling.get("original_max_position_embeddings", 4096)

    def place(rotations: float) -> float:
        return size * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low, high = place(scaling.get("beta_fast", 32)), place(scaling.get("beta_slow", 1))
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, size - 1)
    span = high - low if high != low else 0.001
    periods = []
    for i in range(size // 2):
        period, stretched = theta ** (2 * i / size), min(max((i - low) / span, 0.0), 1.0)
        periods.append(1.0 / (stretched / (factor * period) + (1 - stretched) / period))
    return periods


def longrope_magnitude(scaling: dict[str, Any]) -> float:
    """What longrope multiplies queries and keys with, whatever the text's length."""
    if scaling.get("attention_factor") is not None:
        return float(scaling["attention_factor"])
    factor, original = scaling["factor"], scaling["original_max_position_embeddings"]
    return 1.0 if factor <= 1.0 else math.sqrt(1.0 + math.log(factor) / math.log(original))
