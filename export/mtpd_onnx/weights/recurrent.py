"""`tap_values`: weights of recurrent layers in the shapes that graphs use.
Called by weights/parameters.py."""

import numpy as np

from mtpd_onnx.weights.tensors import Tensors

TAPS, TAPS_BIAS = "taps", "taps_bias"
DECAY_SCALE, DT_BIAS = "decay_scale", "dt_bias"
PARTS = (TAPS, TAPS_BIAS, DECAY_SCALE, DT_BIAS, "D")
CONVOLUTIONS = {
    "conv": "conv.conv",
    "linear_attn": "linear_attn.conv1d",
    "mamba": "mamba.conv1d",
}  # by the layer's name in a block, the convolution's


def recurrent_values(name: str, shape: tuple[int, ...], source: Tensors) -> np.ndarray:
    """float32: one of PARTS."""
    path, _, part = name.rpartition(".")
    if part == DECAY_SCALE:
        return -np.exp(source.get(f"{path}.A_log", shape))
    return source.get(name, shape) if part in (DT_BIAS, "D") else tap_values(name, shape, source)


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
