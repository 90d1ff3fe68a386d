"""Weights of the reference models, made of names and shapes alone: numpy draws the same ones everywhere."""

import zlib
from pathlib import Path

import numpy as np

SEED = 6


def draw(name: str, shape: tuple[int, ...], norm_center: float) -> np.ndarray:
    """float32: norms around `norm_center` (what the family stores for 1), biases and matrices around 0. uint8 of MXFP4."""
    if name.endswith(("_blocks", "_scales")):
        ends = (0, 256) if name.endswith("_blocks") else (120, 124)
        return np.random.default_rng([SEED, zlib.crc32(name.encode())]).integers(*ends, shape, np.uint8)
    noise = np.random.default_rng([SEED, zlib.crc32(name.encode())]).standard_normal(shape).astype(np.float32)
    if name.endswith("A_log"):  # decays of about 1
        return np.float32(0.1) * noise
    if name.endswith("linear_attn.norm.weight"):  # plain, where the family's other norms are stored less 1
        norm_center = 1.0
    if len(shape) == 1:
        return np.float32(0.1) * noise + np.float32(0.0 if name.endswith("bias") else norm_center)
    if "embed_tokens" in name or "lm_head" in name:
        return np.float32(0.4 if norm_center else 0.05) * noise  # Gemma scales its embeddings up
    return noise * np.float32(shape[-1] ** -0.5)


def write_weights(file: Path, shapes: dict[str, list[int]], norm_center: float) -> None:
    from safetensors.numpy import save_file

    save_file({n: draw(n, tuple(s), norm_center) for n, s in shapes.items()}, str(file), metadata={"format": "pt"})
