"""`RMSNorm`, `Linear`, `Embedding`: the modules that blocks are made of.
Called by graphs/modules.py and graphs/recurrent.py."""

import onnx_ir as ir
from onnxscript import OpBuilder
from onnxscript.nn import Module, Parameter

from mtpd_onnx.graphs.flavours import Flavour

Sum = tuple[ir.Value, ir.Value]  # two terms, not yet added


class RMSNorm(Module):
    """x / sqrt(mean(x^2) + eps) * weight over the last axis; weight [size]."""

    def __init__(self, size: int, eps: float, dtype: ir.DataType, flavour: Flavour):
        super().__init__()
        self.weight = Parameter([size], dtype)
        self.eps, self.flavour = eps, flavour

    def forward(self, op: OpBuilder, x: ir.Value, added: ir.Value | None = None) -> ir.Value | Sum:
        """RMSNorm(x), or (x + added, RMSNorm(x + added))."""
        if added is None:
            return self.flavour.rms_norm(op, x, self.weight, self.eps)
        return self.flavour.add_norm(op, x, added, self.weight, self.eps)


class Linear(Module):
    """x W^T + b over the last axis; weight [outputs, inputs]."""

    def __init__(self, inputs: int, outputs: int, dtype: ir.DataType, flavour: Flavour, bias: bool = False):
        super().__init__()
        self.weight = Parameter([outputs, inputs], dtype)
        self.bias = Parameter([outputs], dtype) if bias else None
        self.flavour = flavour

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        return self.flavour.linear(op, x, self.weight, self.bias)


class Embedding(Module):
    """Token ids -> rows times `scale`; `transposed` is the tied output head."""

    def __init__(self, vocab: int, size: int, dtype: ir.DataType, flavour: Flavour, scale: float = 1.0):
        super().__init__()
        self.weight = Parameter([vocab, size], dtype)
        self.flavour, self.scale = flavour, scale

    def forward(self, op: OpBuilder, x: ir.Value, transposed: bool = False) -> ir.Value:
        if transposed:
            return self.flavour.linear(op, x, self.weight, None)
        return scaled(op, op.Gather(self.weight, x), self.scale)


def scaled(op: OpBuilder, x: ir.Value, factor: float) -> ir.Value:
    """x times a constant; no node for 1."""
    return x if factor == 1.0 else op.Mul(x, factor)


class HeadNorm(Module):
    """The weight of a norm; who holds it applies it."""

    def __init__(self, size: int, dtype: ir.DataType):
        super().__init__()
        self.weight = Parameter([size], dtype)

    def forward(self, op: OpBuilder) -> ir.Value:
        return self.weight
