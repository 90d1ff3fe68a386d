"""Layers of hybrid models that are no attention. graphs/modules.py puts them into blocks."""

import onnx_ir as ir
from onnxscript import OpBuilder
from onnxscript.nn import Module, Parameter

from mtpd_onnx.dims import Dims
from mtpd_onnx.graphs.basics import Linear
from mtpd_onnx.graphs.flavours import Flavour, Positions
from mtpd_onnx.graphs.history import History, Taps


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
