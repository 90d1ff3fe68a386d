"""`History`: the inputs of convolutions at every position of a text, kept as keys and values are.
Called by the flavours, which convolve, and by graphs/builder.py and batch.py, which place the rows.

That of position p lies in row p: a rewind is a smaller length, rejected drafts are overwritten and texts can be cut anywhere.
graphs/fused.py and graphs/standard.py convolve; graphs/builder.py and graphs/batch.py say where rows lie.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from onnxscript import OpBuilder

CONV = "conv"  # the name of such a cache, as "key" and "value" are


@dataclass
class History:
    """The inputs of one layer's convolution: what goes in and, after the block ran, what comes out. Fused: [B, 1, C, n] of
    fixed capacity C. Standard: [1, P, n], which grows."""

    past: ir.Value
    rows: ir.Value | None = None


@dataclass
class Places:
    """Where S rows lie in histories [B, 1, C, n], and what each of them sees.

    slots: int64 [S, 3], or [S, n, 4] number by number, as ScatterND takes them. window int64 [k, S]: the rows that each sees,
    the oldest first and itself last, of those of all lines one behind the other. there [k, S, 1]: 1 where the text has such a
    position, else 0.
    """

    slots: ir.Value
    window: ir.Value
    there: ir.Value


def places(graph: Any, rows: ir.Value, lines: ir.Value | None = None, each_number: bool = False) -> Places:
    """Of rows at the positions `rows` int64 [S], of the texts `lines` int64 [S] (None: all of the first). `graph`:
    builder.Graph; each_number: slots of single numbers, because CUDA writes what an index names with one thread. Nothing here
    reads a shape, so that a CUDA graph can hold it."""
    op, dims, capacity = graph.op, graph.spec.dims, graph.spec.capacity
    assert dims.recurrent is not None
    kernel, width = dims.recurrent.kernel, dims.recurrent.channels
    zeros = op.Sub(rows, rows)
    line = zeros if lines is None else lines
    back = graph.constant("history.back", np.arange(1 - kernel, 1, dtype=np.int64)[:, None])
    seen = op.Add(op.Unsqueeze(rows, [0]), back)  # [k, S]
    there = op.GreaterOrEqual(seen, [0])
    window = op.Add(op.Where(there, seen, [0]), op.Mul(line, [capacity]))
    slots = op.Concat(*(op.Unsqueeze(each, [1]) for each in (line, zeros, rows)), axis=1)  # [S, 3]
    if each_number:
        columns = graph.constant("history.columns", np.arange(width, dtype=np.int64)[None, :, None])
        wide = op.Add(op.Unsqueeze(slots, [1]), op.Sub(columns, columns))  # [S, n, 3]
        own = op.Add(op.Unsqueeze(zeros, [1, 2]), columns)  # [S, n, 1]
        slots = op.Concat(wide, own, axis=2)
    return Places(slots, window, op.Unsqueeze(op.Cast(there, to=graph.spec.dtype), [2]))


def positions_of(op: OpBuilder, tokens: ir.Value, last: ir.Value) -> ir.Value:
    """int64 [S]: the positions of tokens [S], of which the last one stands at `last` int32 [1]. Counted, because a CUDA graph
    reads no shapes."""
    ones = op.Cast(op.Equal(tokens, tokens), to=ir.DataType.FLOAT)
    first = op.Sub(op.Cast(last, to=ir.DataType.FLOAT), op.Sub(op.ReduceSum(ones, [0], keepdims=1), 1.0))
    return op.Cast(op.Add(first, op.CumSum(ones, 0, exclusive=1)), to=ir.DataType.INT64)


@dataclass
class Taps:
    """A causal depthwise convolution: weights [k, 1, n], the oldest position's first, and what is added [n]."""

    weights: ir.Value
    bias: ir.Value | None = None


def tapped(op: OpBuilder, seen: ir.Value, taps: Taps) -> ir.Value:
    """seen [k, S, n], the rows that each of S positions sees -> [1, S, n]. Summed in this order, whatever S is."""
    assert taps.weights.shape is not None
    kernel = int(taps.weights.shape[0])  # type: ignore[arg-type]
    products = op.Split(op.Mul(seen, taps.weights), [1] * kernel, axis=0, _outputs=kernel)
    total = products[0]
    for product in products[1:]:
        total = op.Add(total, product)
    return total if taps.bias is None else op.Add(total, taps.bias)
