"""Weights of recurrent layers, in the shapes that the graphs want them in."""

import numpy as np

from mtpd_onnx.weights.tensors import Tensors

TAPS, TAPS_BIAS = "taps", "taps_bias"
CONVOLUTIONS = {"conv": "conv.conv"}  # by the layer's name in a block, the convolution's


def tap_values(name: str, shape: tuple[int, ...], source: Tensors) -> np.ndarray:
    """float32 [k, 1, n] of a depthwise convolution, which Hugging Face stores as [n, 1, k] and mlx-lm as [n, k, 1]; or what is
    added [n]."""
    path, _, part = name.rpartition(".")
    block, _, layer = path.rpartition(".")
    stem = f"{block}.{CONVOLUTIONS[layer]}"
    if part == TAPS_BIAS:
        return source.get(f"{stem}.bias", shape)
    kernel, _, channels = shape
    theirs = source.shape(f"{stem}.weight") == [channels, 1, kernel]
    stored = source.get(f"{stem}.weight", (channels, 1, kernel) if theirs else (channels, kernel, 1))
    return stored.reshape(channels, kernel).T.reshape(shape)
