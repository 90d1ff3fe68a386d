"""cos/sin tables of rotary embeddings (rotate-half), as mlx_lm.models.rope_utils scales them."""

import math
from typing import Any

import numpy as np

from mtpd_onnx.dims import Dims


def rope_tables(dims: Dims, positions: int) -> tuple[np.ndarray, np.ndarray]:
    """(cos, sin), float32 [positions, head_dim / 2]."""
    inverse = 1.0 / dims.rope_theta ** (np.arange(0, dims.head_dim, 2, dtype=np.float64) / dims.head_dim)
    scaling = dims.rope_scaling
    if scaling is not None:
        kind = scaling.get("rope_type") or scaling.get("type")
        inverse = inverse / scaling["factor"] if kind == "linear" else _llama3(inverse, scaling)
    angles = np.arange(positions, dtype=np.float64)[:, None] * inverse[None, :]
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def _llama3(inverse: np.ndarray, scaling: dict[str, Any]) -> np.ndarray:
    """Long wavelengths are slowed down by `factor`, short ones kept, those between interpolated (Llama 3.1)."""
    factor, low, high = scaling["factor"], scaling.get("low_freq_factor", 1.0), scaling.get("high_freq_factor", 4.0)
    original = scaling.get("original_max_position_embeddings", 8192)
    wavelength = 2 * math.pi / inverse
    smooth = (original / wavelength - low) / (high - low)
    between = (1 - smooth) * inverse / factor + smooth * inverse
    scaled = np.where(wavelength > original / low, inverse / factor, between)
    return np.where(wavelength < original / high, inverse, scaled)
