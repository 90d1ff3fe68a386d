"""`expert_values`: matrices and biases of a mixture's experts, stacked as onnxruntime's MoE wants them.
Called by weights/parameters.py."""

import numpy as np

from mtpd_mlx.families.dims import Dims
from mtpd_mlx.families.shapes import BLOCKS
from mtpd_onnx.weights.tensors import Tensors

EXPERT_PARTS = ("experts_gate_up", "experts_down", "experts_gate_up_bias", "experts_down_bias")
OURS = ("gate_proj", "up_proj", "down_proj")


def expert_values(name: str, shape: tuple[int, ...], dims: Dims, source: Tensors) -> np.ndarray:
    """float32 [E, 2 size, d] with the rows of gate and up in turn, or [E, d, size]; of biases [E, 2 size] or [E, d]."""
    path, _, part = name.rpartition(".")
    assert dims.experts is not None
    kind = "bias" if part.endswith("_bias") else "weight"
    which = part.removeprefix("experts_").removesuffix("_bias")  # gate_up, down
    stacked = f"{path}.{dims.experts.stacked}"
    joined = f"{path}.{dims.experts.joined[which == 'down']}"
    if joined.endswith(".weight") and joined in source:  # gate's rows, then up's
        stored = source.get(joined, shape)
        return stored if which == "down" else _in_turn(*np.split(stored, 2, axis=1))
    if dims.experts.fused and f"{stacked}.gate_proj.weight" not in source:
        return _fused(f"{path}.experts.{which}_proj", kind, shape, source)
    if f"{path}.experts.gate_up_proj" in source:  # gate's rows, then up's
        stored = source.get(f"{path}.experts.{which}_proj", shape)
        return stored if which == "down" else _in_turn(*np.split(stored, 2, axis=1))
    if which == "down":
        return _stack(path, 2, kind, shape, dims, source)
    half = (shape[0], shape[1] // 2, *shape[2:])
    return _in_turn(*(_stack(path, j, kind, half, dims, source) for j in (0, 1)))


def _in_turn(gate: np.ndarray, up: np.ndarray) -> np.ndarray:
    """[E, size, ..] each -> [E, 2 size, ..], a row of gate, then one of up."""
    return np.stack([gate, up], axis=2).reshape(gate.shape[0], -1, *gate.shape[2:])


def correction_values(name: str, shape: tuple[int, ...], dims: Dims, source: Tensors) -> np.ndarray:
    """float32 [E]: what is added to the scores of experts to choose among them."""
    assert dims.experts is not None
    path, own = name.rpartition(".")[0], dims.experts.correction or f"{dims.experts.gate}.e_score_correction_bias"
    return source.get(f"{path}.{own}", shape)


def _fused(stem: str, kind: str, shape: tuple[int, ...], source: Tensors) -> np.ndarray:
    """As Hugging Face folders hold gpt-oss: [E, in, out], or MXFP4's blocks; gate and up in turn as they are wanted."""
    if kind == "bias":
        return source.get(f"{stem}_bias", shape)
    if f"{stem}{BLOCKS}" in source:
        return source.blocks(stem, shape)
    return source.get(stem, (shape[0], shape[2], shape[1])).swapaxes(1, 2)


def _stack(path: str, which: int, kind: str, shape: tuple[int, ...], dims: Dims, source: Tensors) -> np.ndarray:
    """One of gate, up and down of all experts [E, out, in]: mlx-lm stacks them, Hugging Face folders hold one by one."""
    assert dims.experts is not None
    stacked = f"{path}.{dims.experts.stacked}.{OURS[which]}.{kind}"
    if stacked in source:
        return source.get(stacked, shape)
    name = dims.experts.names[which]
    return np.stack([source.get(f"{path}.experts.{e}.{name}.{kind}", shape[1:]) for e in range(shape[0])])
