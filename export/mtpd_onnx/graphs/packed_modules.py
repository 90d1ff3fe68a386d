"""`pack_modules`: modules whose matrix is stored in integers, put where the plan says so.
Called by graphs/builder.py; weights/quantised_layouts.py makes the plan.

w = scales * (integers - zero_points) + residual, per group of the inputs (weights/quantize.py). The product with the first
term is com.microsoft.MatMulNBits; the second one adds GroupSum(x) @ residual^T, GroupSum(x)[g] = the sum of x over group g.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir
from onnxscript import OpBuilder
from onnxscript.nn import Module, Parameter

from mtpd_onnx.graphs.flavours import MICROSOFT
from mtpd_onnx.graphs.modules import Embedding, Linear, scaled

U8 = ir.DataType.UINT8
INT8_PRODUCTS = 4  # MatMulNBits' accuracy_level: inputs rounded to 8 bits; 0 computes in the inputs' own type


@dataclass(frozen=True)
class Packed:
    """How one matrix is stored and multiplied.

    residual: whether the second term is there at all. unpacked: the graph spells the matrix out of its integers, which
    onnxruntime does once, when it loads. int8_products: the input is rounded to 8 bits too.
    """

    bits: int
    group_size: int
    residual: bool = False
    unpacked: bool = False
    int8_products: bool = False


class PackedLinear(Module):
    """x W^T + b."""

    def __init__(self, matrix: Parameter, bias: Parameter | None, layout: Packed):
        super().__init__()
        assert matrix.shape is not None and matrix.dtype is not None
        self.outputs, self.inputs = (int(n) for n in matrix.shape)  # type: ignore[arg-type]
        self.layout, self.groups, self.dtype = layout, self.inputs // layout.group_size, matrix.dtype
        self.weight = Parameter([self.outputs, self.groups, layout.group_size * layout.bits // 8], U8)
        self.scales = Parameter([self.outputs, self.groups], self.dtype)
        self.zero_points = Parameter([self.outputs, -(-self.groups * layout.bits // 8)], U8)
        self.residual = Parameter([self.outputs, self.groups], self.dtype) if layout.residual else None
        self.bias = bias
        self.unpacked: ir.Value | None = None  # the matrix [outputs, inputs], where the graph spells it out

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        y = self._unpacked_product(op, x) if self.layout.unpacked else self._product(op, x)
        return y if self.bias is None else op.Add(y, self.bias)

    def _product(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        y = op.MatMulNBits(
            x,
            self.weight,
            self.scales,
            self.zero_points,
            K=self.inputs,
            N=self.outputs,
            bits=self.layout.bits,
            block_size=self.layout.group_size,
            accuracy_level=INT8_PRODUCTS if self.layout.int8_products else 0,
            _domain=MICROSOFT,
            _version=1,
        )
        self._describe(x, y)
        if self.residual is None:
            return y
        kept = [0, 0] if x.shape is None else [0] * (len(x.shape) - 1)
        sums = op.ReduceSum(op.Reshape(x, [*kept, self.groups, self.layout.group_size]), [-1], keepdims=0)
        correction = op.FusedMatMul(sums, self.residual, transB=1, _domain=MICROSOFT, _version=1)
        self._describe(x, correction)
        return op.Add(y, correction)

    def _unpacked_product(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        if self.unpacked is None:  # once a graph, outside of its branches: each would hold a copy
            self.unpacked = self._unpacked(op.builder.root.op)
        y = op.FusedMatMul(x, self.unpacked, transB=1, _domain=MICROSOFT, _version=1)
        self._describe(x, y)
        return y

    def _unpacked(self, op: OpBuilder) -> ir.Value:
        steps = op.Sub(op.Cast(self.weight, to=self.dtype), op.Unsqueeze(op.Cast(self.zero_points, to=self.dtype), [-1]))
        matrix = op.Mul(steps, op.Unsqueeze(self.scales, [-1]))
        if self.residual is not None:
            matrix = op.Add(matrix, op.Unsqueeze(self.residual, [-1]))
        return op.Reshape(matrix, [self.outputs, self.inputs])

    def _describe(self, x: ir.Value, y: ir.Value) -> None:
        """Shape inference knows nothing of com.microsoft."""
        y.dtype = self.dtype
        y.shape = None if x.shape is None else ir.Shape([*x.shape[:-1], self.outputs])


class PackedEmbedding(PackedLinear):
    """Token ids -> rows; `transposed` is the tied output head. Both read the same integers.

    GatherBlockQuantized takes zero points in a layout that differs between CPU and CUDA, so it is given none: `offset`
    [V, G, 1] holds what its own zero point 2^(bits - 1) leaves over, the residual included.
    """

    def __init__(self, matrix: Parameter, layout: Packed, scale: float = 1.0):
        super().__init__(matrix, None, layout)
        self.scale = scale
        self.offset = Parameter([self.outputs, self.groups, 1], self.dtype)

    def forward(self, op: OpBuilder, x: ir.Value, transposed: bool = False) -> ir.Value:
        if transposed:
            return super().forward(op, x)
        rows = op.GatherBlockQuantized(
            self.weight,
            x,
            op.Unsqueeze(self.scales, [-1]),
            bits=self.layout.bits,
            block_size=self.layout.group_size,
            gather_axis=0,
            quantize_axis=2,
            _domain=MICROSOFT,
            _version=1,
        )
        assert x.shape is not None
        rows.dtype, rows.shape = self.dtype, ir.Shape([*x.shape, self.groups, self.layout.group_size])
        return scaled(op, op.Reshape(op.Add(rows, op.Gather(self.offset, x)), [*[0] * len(x.shape), self.inputs]), self.scale)


def pack_modules(root: Module, layouts: Mapping[str, Packed]) -> None:
    """Puts packed modules in the places of those whose path is in `layouts`."""
    for path, module in list(root.named_modules()):
        if path not in layouts:
            continue
        parent_path, _, name = path.rpartition(".")
        parent = dict(root.named_modules())[parent_path]
        if isinstance(module, Embedding):
            setattr(parent, name, PackedEmbedding(module.weight, layouts[path], module.scale))
        else:
            assert isinstance(module, Linear)
            setattr(parent, name, PackedLinear(module.weight, module.bias, layouts[path]))
