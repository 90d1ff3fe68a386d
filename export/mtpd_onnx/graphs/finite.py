"""`marked`: the mark of tokens chosen from logits that are not finite, inside a graph.
Called by every graph that chooses tokens; see mtpd_mlx/speculative/finite.py."""

import onnx_ir as ir
from onnxscript import OpBuilder

from mtpd_mlx.speculative.finite import NO_TOKEN
from mtpd_onnx.graphs.flavours import widened


def marked(op: OpBuilder, tokens: ir.Value, logits: ir.Value, largest: ir.Value | None = None) -> ir.Value:
    """tokens int64 [..], chosen from logits [.., V] -> the same, NO_TOKEN where the row's maximum (`largest` [..], where it is
    known) is not finite.

    onnxruntime's ReduceMax and ArgMax may pass over NaN, ReduceSum does not. With maximum m and sum s of a row, s - m is NaN
    where anything is NaN, where m is infinite (inf - inf), and where all is -inf; nowhere else: -inf beside a finite m gives
    -inf. An embedding takes NO_TOKEN for its last row, so that a run started ahead does no harm.
    """
    logits = widened(op, logits)
    largest = op.ReduceMax(logits, [-1], keepdims=0) if largest is None else largest
    if largest.dtype is not None and largest.dtype != logits.dtype:  # where tokens are sampled it is float32
        logits = op.Cast(logits, to=largest.dtype)
    apart = op.Sub(op.ReduceSum(logits, [-1], keepdims=0), largest)
    return op.Where(op.Equal(apart, apart), tokens, [NO_TOKEN])
