"""The matrices of a mixture's experts, stacked as onnxruntime's MoE wants them, from either layout of a checkpoint."""

import numpy as np

from mtpd_mlx.families.dims import Dims
from mtpd_onnx.weights.tensors import Tensors

EXPERT_PARTS = ("experts_gate_up", "experts_down")


def expert_values(name: str, shape: tuple[int, ...], dims: Dims, source: Tensors) -> np.ndarray:
    """float32 [E, 2 size, d] with the rows of gate and up in turn, or [E, d, size]."""
    path, _, part = name.rpartition(".")
    if part == "experts_down":
        return _stack(path, 2, shape, dims, source)
    half = (shape[0], shape[1] // 2, shape[2])
    both = np.stack([_stack(path, j, half, dims, source) for j in (0, 1)], axis=2)  # [E, size, 2, d]
    return both.reshape(shape)


def _stack(path: str, which: int, shape: tuple[int, ...], dims: Dims, source: Tensors) -> np.ndarray:
    """One of gate, up and down of all experts [E, out, in]: mlx-lm stacks them, Hugging Face folders hold one by one."""
    assert dims.experts is not None
    stacked = f"{path}.switch_mlp.{('gate_proj', 'up_proj', 'down_proj')[which]}.weight"
    if stacked in source:
        return source.get(stacked, shape)
    name = dims.experts.names[which]
    return np.stack([source.get(f"{path}.experts.{e}.{name}.weight", shape[1:]) for e in range(shape[0])])
