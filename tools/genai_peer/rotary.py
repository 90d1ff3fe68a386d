"""`difference`, `restore`: the builder's rotary tables, kept as their difference from a prediction.
Called by genai_peer/fill.py and skeleton.py.

They depend on no weight but are large (2 x 40,960 x 64 for Qwen3). The prediction follows the builder's own float32 steps;
what is left are a few last bits, which compress to almost nothing. With rope scaling more is left, and it is still exact.
"""

import hashlib

import numpy as np

FUNCTIONS = {"cos_cache": np.cos, "sin_cache": np.sin}


def predict(name: str, shape: tuple[int, ...], dtype: np.dtype, theta: float) -> np.ndarray:
    """[positions, head_dim / 2]: cos or sin of position * theta ** (-2 i / head_dim), angles rounded to float32."""
    positions, half = shape
    exponents = np.arange(0, 2 * half, 2, dtype=np.float32) / np.float32(2 * half)
    frequencies = np.float32(1) / (theta ** exponents.astype(np.float64)).astype(np.float32)
    angles = np.arange(positions, dtype=np.float32)[:, None] * frequencies[None, :]
    return FUNCTIONS[name](angles.astype(np.float64)).astype(np.float32).astype(dtype)


def difference(table: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """Signed integers of the items' size; small where two floats of one sign are close."""
    kind = f"<i{table.itemsize}"
    return table.view(kind) - prediction.view(kind)


def restore(prediction: np.ndarray, left: np.ndarray) -> np.ndarray:
    return (prediction.view(left.dtype) + left).view(prediction.dtype)


def digest(table: np.ndarray) -> str:
    return hashlib.sha256(table.tobytes()).hexdigest()
