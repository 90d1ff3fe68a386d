"""`mamba_inputs`: what the recurrence of Mamba-2 layers (arXiv 2405.21060) is given; delta.py says what is kept.
Called by graphs/recurrent.py."""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnxscript import OpBuilder

from mtpd_mlx.families.dims import Recurrent
from mtpd_onnx.graphs.delta import END, RuleInputs, convolved
from mtpd_onnx.graphs.flavours import Flavour
from mtpd_onnx.graphs.history import Taps


@dataclass
class MambaWeights:
    """taps: of the convolution over x, B and C; decay_scale [H]: -exp(A_log); dt_bias and skip (D) [H]."""

    taps: Taps
    decay_scale: ir.Value
    dt_bias: ir.Value
    skip: ir.Value


def mamba_inputs(op: OpBuilder, kind: Recurrent, seen: ir.Value, w: MambaWeights, flavour: Flavour) -> RuleInputs:
    """Of rows [1, k - 1 + T, C + H], of which the first k - 1 are only seen by the convolution.

    S_t = exp(dt_t A) S_{t-1} + B_t (dt_t x_t)^T and y_t = S_t^T C_t + D x_t.
    """
    heads, width = kind.heads, kind.heads * kind.value
    packed, dt = op.Split(seen, [kind.channels, heads], axis=-1, _outputs=2)
    sizes = [width] + [kind.groups * kind.key] * 2
    x, b, c = op.Split(convolved(op, kind, packed, w.taps, flavour), sizes, axis=-1, _outputs=3)
    dt = op.Softplus(op.Add(op.Slice(dt, [kind.kernel - 1], [END], [1]), w.dt_bias))
    if kind.step_limit != (0.0, float("inf")):
        dt = op.Clip(dt, *(op.CastLike(end, dt) for end in np.clip(kind.step_limit, 0.0, 3e38).tolist()))
    parts = op.Reshape(x, [1, -1, heads, kind.value])  # [1, T, H, Dh]
    value, skip = (op.Reshape(op.Mul(parts, op.Unsqueeze(each, [-1])), [1, -1, width]) for each in (dt, w.skip))
    b, c = (_of_heads(op, kind, each) for each in (b, c))
    return RuleInputs(c, b, value, op.Mul(dt, w.decay_scale), None, 1.0, skip)


def _of_heads(op: OpBuilder, kind: Recurrent, x: ir.Value) -> ir.Value:
    """x [1, T, G Ds] -> [1, T, H Ds]."""
    groups = op.Reshape(x, [1, -1, kind.groups, kind.key])
    heads = op.Gather(groups, np.repeat(np.arange(kind.groups), kind.heads // kind.groups).tolist(), axis=2)
    return op.Reshape(heads, [1, -1, kind.heads * kind.key])
