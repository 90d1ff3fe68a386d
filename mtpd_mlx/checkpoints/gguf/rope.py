"""`rope_scaling`, `llama3_factors`: the rotary embedding of a GGUF file as config.json names it.
Called by gguf/config.py and gguf/tensors.py."""

from typing import Any

import numpy as np

from mtpd_mlx.checkpoints.gguf.quants import floats
from mtpd_mlx.checkpoints.gguf.reader import Gguf

FACTORS = "rope_freqs.weight"
LLAMA3_CONTEXT, LLAMA3_LOW, LLAMA3_HIGH = 8192, 1.0, 4.0  # of every Llama 3.1, 3.2 and 3.3


def number(value: float) -> float:
    """A float32 as the shortest decimal that is it: 1e-05, not 9.999999747378752e-06."""
    with np.errstate(over="ignore"):
        single = np.float32(value)
    return float(str(single)) if np.isfinite(single) else value


def rope_scaling(source: Gguf, architecture: str, theta: float, head_dim: int) -> dict[str, Any] | None:
    """None where there is none. ValueError names the key or tensor that cannot be expressed."""
    prefix = f"{architecture}.rope.scaling."
    kind = source.get(prefix + "type", str, "none")
    factor = source.get(prefix + "factor", float) or source.get(f"{architecture}.rope.scale_linear", float)
    if FACTORS in source.tensors:
        if kind not in ("none", "llama3"):
            raise ValueError(f"{source.file}: {FACTORS!r} beside {prefix}type {kind!r}: expected one of them")
        return _llama3(source, theta, head_dim)
    if kind == "none" and source.metadata.get(prefix + "type") is None and factor:
        kind = "linear"
    if kind == "none" or (kind == "linear" and factor in (None, 1.0)):
        return None
    if kind == "linear":
        assert factor is not None
        return {"rope_type": "linear", "factor": number(factor)}
    if kind == "yarn":
        return _yarn(source, prefix, factor)
    raise ValueError(f"{source.file}: {prefix}type: got {kind!r}, expected none, linear, yarn, or the tensor {FACTORS!r}")


def _yarn(source: Gguf, prefix: str, factor: float | None) -> dict[str, Any]:
    for name in ("attn_factor", "yarn_attn_factor", "yarn_ext_factor"):
        if (value := source.get(prefix + name, float, 1.0)) != 1.0:
            raise ValueError(f"{source.file}: {prefix}{name}: got {value}, expected 1")
    if source.get(prefix + "yarn_log_multiplier", float):
        raise ValueError(f"{source.file}: {prefix}yarn_log_multiplier is not supported")
    if not factor:
        raise ValueError(f"{source.file}: missing key {prefix + 'factor'!r}")
    original = source.need(prefix + "original_context_length", int)
    found: dict[str, Any] = {"rope_type": "yarn", "factor": number(factor), "original_max_position_embeddings": original}
    for name in ("beta_fast", "beta_slow"):
        if (value := source.get(f"{prefix}yarn_{name}", float)) is not None:
            found[name] = number(value)
    return found


def _llama3(source: Gguf, theta: float, head_dim: int) -> dict[str, Any] | None:
    """Llama 3.1's scaling, of which the file has only what each period is multiplied by."""
    tensor = source.tensors[FACTORS]
    if tensor.shape != (head_dim // 2,):
        raise ValueError(f"{source.file}: {FACTORS!r}: got shape {tensor.shape}, expected {(head_dim // 2,)}")
    factors = floats(tensor).astype(np.float64)
    if (factors == 1).all():
        return None
    periods = 2 * np.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    factor = number(factors.max())
    for original, low, high in _candidates(factors, periods, factor):
        if np.allclose(llama3_factors(periods, factor, original, low, high), factors, rtol=1e-4):
            return {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low,
                "high_freq_factor": high,
                "original_max_position_embeddings": original,
            }
    raise ValueError(f"{source.file}: {FACTORS!r}: not the factors of llama3's scaling")


def _candidates(factors: np.ndarray, periods: np.ndarray, factor: float) -> list[tuple[int, float, float]]:
    """(original context, low, high): the published ones, and with low = 1 those that the factors between 1 and the largest
    imply: their smoothing (original / period - low) / (high - low) is a line in 1 / period."""
    found = [(LLAMA3_CONTEXT, LLAMA3_LOW, LLAMA3_HIGH)]
    between = (factors > 1.0001) & (factors < factor * 0.9999)
    if between.sum() >= 2 and factor > 1:
        smooth = (1 / factors[between] - 1 / factor) / (1 - 1 / factor)
        slope, start = np.polyfit(1 / periods[between], smooth, 1)
        if start < 0 < slope:
            high = round(1 - 1 / start, 3)
            found.append((round(slope * (high - 1)), 1.0, high))
    return found


def llama3_factors(periods: np.ndarray, factor: float, original: float, low: float, high: float) -> np.ndarray:
    """What llama3's scaling multiplies periods with: 1 for those under original / high, `factor` for those above original /
    low, and in between a blend of the frequencies."""
    smooth = np.clip((original / periods - low) / (high - low), 0, 1)
    return np.asarray(1 / ((1 - smooth) / factor + smooth))
