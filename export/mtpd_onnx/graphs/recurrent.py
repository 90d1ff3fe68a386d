"""Layers of hybrid models that are no attention, as ONNX modules.
Called by graphs/modules.py, which puts them into blocks."""

import onnx_ir as ir
from onnxscript import OpBuilder
from onnxscript.nn import Module, Parameter

from mtpd_onnx.dims import Dims
from mtpd_onnx.graphs.basics import HeadNorm, Linear, RMSNorm
from mtpd_onnx.graphs.delta import DeltaWeights, Recurrence, RuleInputs, delta_inputs, row_size
from mtpd_onnx.graphs.flavours import Flavour, Positions
from mtpd_onnx.graphs.history import History, Taps
from mtpd_onnx.graphs.mamba import MambaWeights, mamba_inputs


class ShortConv(Module):
    """LFM2's gated short convolution: y = W_out (C * conv(B * x)), with [B, C, x] = W_in h."""

    def __init__(self, dims: Dims, dtype: ir.DataType, flavour: Flavour):
        super().__init__()
        assert dims.recurrent is not None
        kind, self.flavour = dims.recurrent, flavour
        self.in_proj = Linear(dims.hidden_size, 3 * kind.channels, dtype, flavour, kind.bias)
        self.out_proj = Linear(kind.channels, dims.hidden_size, dtype, flavour, kind.bias)
        self.taps = Parameter([kind.kernel, 1, kind.channels], dtype)
        self.taps_bias = Parameter([kind.channels], dtype) if kind.conv_bias else None
        self.sizes = [kind.channels] * 3

    def forward(self, op: OpBuilder, x: ir.Value, history: History, positions: Positions) -> ir.Value:
        before, after, rows = op.Split(self.in_proj(op, x), self.sizes, axis=-1, _outputs=3)
        taps = Taps(self.taps, self.taps_bias)
        return self.out_proj(op, op.Mul(after, self.flavour.convolution(op, op.Mul(before, rows), taps, history, positions)))


class DeltaNet(Module):
    """Qwen3.5's gated delta net: y = W_out (norm(S_t q_t) silu(z)). `in_proj_all` stacks queries, keys, values, b, a and z."""

    def __init__(self, dims: Dims, dtype: ir.DataType, flavour: Flavour):
        super().__init__()
        assert dims.recurrent is not None
        self.kind, self.flavour, self.eps = dims.recurrent, flavour, dims.rms_norm_eps
        heads, outputs = self.kind.heads, self.kind.heads * self.kind.value
        self.sizes = [row_size(self.kind), outputs]
        self.in_proj_all = Linear(dims.hidden_size, sum(self.sizes), dtype, flavour)
        self.out_proj = Linear(outputs, dims.hidden_size, dtype, flavour)
        self.taps = Parameter([self.kind.kernel, 1, self.kind.channels], dtype)
        self.decay_scale, self.dt_bias = Parameter([heads], dtype), Parameter([heads], dtype)
        self.norm = RMSNorm(self.kind.value, dims.rms_norm_eps, dtype, flavour)

    def forward(self, op: OpBuilder, x: ir.Value, kept: Recurrence, positions: Positions) -> ir.Value:
        rows, z = op.Split(self.in_proj_all(op, x), self.sizes, axis=-1, _outputs=2)
        weights = DeltaWeights(Taps(self.taps), self.decay_scale, self.dt_bias)

        def given(seen: ir.Value) -> RuleInputs:
            return delta_inputs(op, self.kind, seen, weights, self.flavour)

        y = self.flavour.recurrence(op, self.kind, rows, given, kept, positions)
        before = [0] * (2 if x.shape is None else len(x.shape) - 1)
        heads = op.Reshape(y, [*before, self.kind.heads, self.kind.value])
        gated = op.Mul(op.Reshape(self.norm(op, heads), [*before, -1]), self.flavour.silu(op, z))
        gated.dtype, gated.shape = z.dtype, z.shape
        return self.out_proj(op, gated)


class Mamba(Module):
    """Granite 4's Mamba-2 layer: y = W_out norm((S_t^T C_t + D x_t) silu(z)), the norm by groups of channels."""

    def __init__(self, dims: Dims, dtype: ir.DataType, flavour: Flavour):
        super().__init__()
        assert dims.recurrent is not None
        self.kind, self.flavour = dims.recurrent, flavour
        heads, inner = self.kind.heads, self.kind.heads * self.kind.value
        self.sizes = [inner, row_size(self.kind)]
        self.in_proj = Linear(dims.hidden_size, sum(self.sizes), dtype, flavour, self.kind.bias)
        self.out_proj = Linear(inner, dims.hidden_size, dtype, flavour, self.kind.bias)
        self.taps = Parameter([self.kind.kernel, 1, self.kind.channels], dtype)
        self.taps_bias = Parameter([self.kind.channels], dtype) if self.kind.conv_bias else None
        self.decay_scale, self.dt_bias = Parameter([heads], dtype), Parameter([heads], dtype)
        self.D = Parameter([heads], dtype)
        self.norm, self.eps = HeadNorm(inner, dtype), dims.rms_norm_eps

    def forward(self, op: OpBuilder, x: ir.Value, kept: Recurrence, positions: Positions) -> ir.Value:
        z, rows = op.Split(self.in_proj(op, x), self.sizes, axis=-1, _outputs=2)
        weights = MambaWeights(Taps(self.taps, self.taps_bias), self.decay_scale, self.dt_bias, self.D)

        def given(seen: ir.Value) -> RuleInputs:
            return mamba_inputs(op, self.kind, seen, weights, self.flavour)

        y = self.flavour.recurrence(op, self.kind, rows, given, kept, positions)
        before = [0] * (2 if x.shape is None else len(x.shape) - 1)
        size = self.sizes[0] // self.kind.groups
        parts = op.Reshape(op.Mul(y, self.flavour.silu(op, z)), [*before, self.kind.groups, size])
        ones = op.CastLike([1.0] * size, x)
        ones.type, ones.shape = x.type, ir.Shape([size])
        normed = op.Mul(op.Reshape(self.flavour.rms_norm(op, parts, ones, self.eps), [*before, -1]), self.norm(op))
        normed.type, normed.shape = z.type, z.shape
        return self.out_proj(op, normed)
