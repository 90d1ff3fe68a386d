"""`rope_tables`: cos/sin tables of rotary embeddings (halves rotated), scaled as mlx_lm.models.rope_utils scales them.
Called by graphs/builder.py."""

import math
from typing import Any

import numpy as np

from mtpd_mlx.families.rotary import longrope_magnitude, yarn_periods
from mtpd_onnx.dims import Dims, rope_type


def rope_tables(dims: Dims, positions: int, local: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """(cos, sin), float32 [positions, rotary_dim / 2]. `local`: those of sliding layers, where they have their own."""
    theta, scaling = (dims.local_theta or 0.0, None) if local else (dims.rope_theta, dims.rope_scaling)
    size = dims.rotary_dim if local else dims.geometry(dims.head_layer).rotary_dim
    periods = theta ** (np.arange(0, size, 2, dtype=np.float64) / size)
    kind, magnitude, scaling = rope_type(scaling), 1.0, scaling or {}
    if kind == "linear":
        periods = periods * scaling["factor"]
    elif kind == "llama3":
        periods = _llama3(periods, scaling)
    elif kind == "yarn":
        periods, magnitude = _yarn(dims, scaling)
    elif kind == "proportional":  # the pairs beyond a share of them are not rotated
        turned = np.arange(size // 2) < int(size * scaling["partial_rotary_factor"]) // 2
        periods = np.where(turned, periods * scaling.get("factor", 1.0), np.inf)
    elif kind in ("longrope", "su"):  # texts are kept to the original length (Dims.context_length): the short factors
        periods, magnitude = periods * np.asarray(scaling["short_factor"], np.float64), longrope_magnitude(scaling)
    angles = np.arange(positions, dtype=np.float64)[:, None] / periods[None, :]
    return (np.cos(angles) * magnitude).astype(np.float32), (np.sin(angles) * magnitude).astype(np.float32)


def _llama3(periods: np.ndarray, scaling: dict[str, Any]) -> np.ndarray:
    """Long wavelengths are stretched by `factor`, short ones kept, those between interpolated (Llama 3.1)."""
    factor, low, high = scaling["factor"], scaling.get("low_freq_factor", 1.0), scaling.get("high_freq_factor", 4.0)
    original = scaling.get("original_max_position_embeddings", 8192)
    wavelength = 2 * math.pi * periods
    smooth = (original / wavelength - low) / (high - low)
    between = periods / ((1 - smooth) / factor + smooth)
    scaled = np.where(wavelength > original / low, periods * factor, between)
    return np.where(wavelength <= original / high, periods, scaled)


def _yarn(dims: Dims, scaling: dict[str, Any]) -> tuple[np.ndarray, float]:
    """YaRN: (periods, factor on cos and sin). Queries and keys are both scaled by the factor."""
    factor, periods = scaling["factor"], np.array(yarn_periods(dims.rope_theta, dims.rotary_dim, scaling))

    def magnitude(mscale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0

    if scaling.get("attention_factor") is not None:
        return periods, float(scaling["attention_factor"])
    return periods, magnitude(scaling.get("mscale", 1)) / magnitude(scaling.get("mscale_all_dim", 0))
