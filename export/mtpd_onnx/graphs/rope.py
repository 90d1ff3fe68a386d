"""cos/sin tables of rotary embeddings (halves rotated), scaled as mlx_lm.models.rope_utils scales them."""

import math
from typing import Any

import numpy as np

from mtpd_mlx.families.rotary import longrope_magnitude
from mtpd_onnx.dims import Dims, rope_type


def rope_tables(dims: Dims, positions: int, local: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """(cos, sin), float32 [positions, rotary_dim / 2]. `local`: those of sliding layers, where they have their own."""
    theta, scaling = (dims.local_theta or 0.0, None) if local else (dims.rope_theta, dims.rope_scaling)
    periods = theta ** (np.arange(0, dims.rotary_dim, 2, dtype=np.float64) / dims.rotary_dim)
    kind, magnitude, scaling = rope_type(scaling), 1.0, scaling or {}
    if kind == "linear":
        periods = periods * scaling["factor"]
    elif kind == "llama3":
        periods = _llama3(periods, scaling)
    elif kind == "yarn":
        periods, magnitude = _yarn(periods, dims, scaling)
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


def _yarn(periods: np.ndarray, dims: Dims, scaling: dict[str, Any]) -> tuple[np.ndarray, float]:
    """YaRN: (periods, factor on cos and sin). Queries and keys are both scaled by the factor."""
    factor, size = scaling["factor"], dims.rotary_dim
    original = scaling.get("original_max_position_embeddings", 4096)

    def correction(rotations: float) -> float:
        return size * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(dims.rope_theta))

    def magnitude(mscale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0

    low = max(math.floor(correction(scaling.get("beta_fast", 32))), 0)
    high = min(math.ceil(correction(scaling.get("beta_slow", 1))), size - 1)
    span = high - low if high != low else 0.001
    keep = 1.0 - np.clip((np.arange(size // 2) - low) / span, 0, 1)
    blended = factor * periods * periods / (factor * periods * keep + periods * (1 - keep))
    if scaling.get("attention_factor") is not None:
        return blended, float(scaling["attention_factor"])
    return blended, magnitude(scaling.get("mscale", 1)) / magnitude(scaling.get("mscale_all_dim", 0))
