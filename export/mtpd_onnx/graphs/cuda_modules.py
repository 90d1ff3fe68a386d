"""`transpose_modules`, `best_of_blocks`: operations spelt as onnxruntime's CUDA kernels are fastest.
Called by graphs/builder.py."""

import math

import onnx_ir as ir
from onnxscript import OpBuilder
from onnxscript.nn import Module, Parameter

from mtpd_onnx.graphs.flavours import CUDA_TYPES, widened
from mtpd_onnx.graphs.fused import Fused
from mtpd_onnx.graphs.modules import Linear

BLOCK = 256  # logits that one thread block searches
EACH = 8  # of the likeliest, in a block, at least


class TransposedLinear(Module):
    """x W^T + b, the matrix stored as `weight_t` [in, out]. Of products with few rows onnxruntime times several kernels and
    takes the quickest, of matrices that lie so (the session option ep.cuda.enable_gemm_auto_tune)."""

    def __init__(self, linear: Linear):
        super().__init__()
        matrix = linear.weight
        assert matrix.shape is not None and matrix.dtype is not None
        self.outputs, inputs = (int(n) for n in matrix.shape)  # type: ignore[arg-type]
        self.weight_t = Parameter([inputs, self.outputs], matrix.dtype)
        self.bias = linear.bias

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        y = op.MatMul(x, self.weight_t)
        assert x.shape is not None
        y.dtype, y.shape = self.weight_t.dtype, ir.Shape([*x.shape[:-1], self.outputs])
        return y if self.bias is None else op.Add(y, self.bias)


def transpose_modules(root: Module) -> None:
    """Puts transposed modules in the places of those that multiply in half precision with onnxruntime's own operators."""
    modules = dict(root.named_modules())
    for path, module in list(modules.items()):
        if isinstance(module, Linear) and isinstance(module.flavour, Fused) and module.weight.dtype in CUDA_TYPES:
            parent, _, name = path.rpartition(".")
            setattr(modules[parent], name, TransposedLinear(module))


def best_of_blocks(op: OpBuilder, logits: ir.Value) -> tuple[ir.Value, ir.Value]:
    """logits [.., V] -> the index of the largest, the first of equal ones, int64 [..], and the largest [..].

    Block by block, then among the blocks: many thread blocks search a row, where ArgMax takes one kernel after another.
    """
    logits = widened(op, logits)
    assert logits.shape is not None
    rank, size = len(logits.shape), int(logits.shape[-1])  # type: ignore[arg-type]
    block = math.gcd(size, BLOCK)
    if block < 2 or size // block < 2:
        largest, index = op.TopK(logits, [1], axis=-1, _outputs=2)
        return op.Squeeze(index, [-1]), op.Squeeze(largest, [-1])
    blocks = op.Reshape(logits, [*[0] * (rank - 1), size // block, block])  # [.., A, B]
    best, within = (op.Squeeze(each, [-1]) for each in op.TopK(blocks, [1], axis=-1, _outputs=2))  # [.., A]
    largest, which = op.TopK(best, [1], axis=-1, _outputs=2)  # [.., 1]
    index = op.Add(op.Mul(which, [block]), op.GatherElements(within, which, axis=-1))
    return op.Squeeze(index, [-1]), op.Squeeze(largest, [-1])


def likeliest_of_blocks(op: OpBuilder, logits: ir.Value, count: int) -> ir.Value:
    """float32 logits [n, V] -> about the `count` largest of each row in order, [n, count]. One that shares a block with many
    larger ones is left out. The first is always right."""
    assert logits.shape is not None
    size = int(logits.shape[-1])  # type: ignore[arg-type]
    count, block = min(count, size), math.gcd(size, BLOCK)
    each = min(block, max(EACH, -(-2 * count * block // size)))
    if block > each and size // block > 1:
        best, _ = op.TopK(op.Reshape(logits, [0, size // block, block]), [each], axis=-1, _outputs=2)
        logits = op.Reshape(best, [0, size // block * each])
    ordered: ir.Value = op.TopK(logits, [count], axis=-1, _outputs=2)[0]
    return ordered


def largest_of_blocks(op: OpBuilder, logits: ir.Value) -> ir.Value:
    """float32 logits [n, V] -> the largest of each row, [n, 1]. ReduceMax takes as long as ArgMax there."""
    return op.Unsqueeze(best_of_blocks(op, logits)[1], [-1])
