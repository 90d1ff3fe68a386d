"""`RowSampler`: many rows sampled at once, each by its own settings and the uniforms that it is given.
Called by graphs/batch.py.

What is kept of a distribution is found among its likeliest tokens, or is all of it: only where that does not settle it are all
tokens put in order.
"""

from dataclasses import dataclass, field
from itertools import count
from typing import Any

import numpy as np
import onnx_ir as ir
from onnxscript import OpBuilder

from mtpd_mlx.speculative.sampling import LARGEST
from mtpd_onnx.graphs.sampling import END, F32, I64, NOT_DRAFTED, Distribution, block_size, in_blocks


@dataclass
class RowSampler:
    """The rule for rows [n, V] with settings float32 [n, 5] (sampling.SETTINGS)."""

    graph: Any
    vocab: int
    _names: Any = field(default_factory=count)

    def of(self, op: OpBuilder, logits: ir.Value, contexts: ir.Value, settings: ir.Value) -> ir.Value:
        """What tokens are drawn from: logits [n, V], contexts int64 [n, N] -> float32 [n, V]."""
        return Distribution(settings, self.vocab, branch=f"least.{next(self._names)}").of(op, logits, contexts)

    def spread(self, op: OpBuilder, logits: ir.Value, ids: ir.Value | None) -> ir.Value:
        """Logits [n, D] of the draft vocabulary `ids` [D] (None: of all tokens) as [n, V]."""
        if ids is None:
            return logits
        rows = op.Shape(logits, start=0, end=1)
        name = f"spread.{next(self._names)}"
        width = self.graph.constant(f"{name}.vocab", np.array([self.vocab], np.int64))
        none = self.graph.constant(f"{name}.none", np.full((1, 1), NOT_DRAFTED, np.float32))
        blank = op.Expand(none, op.Concat(rows, width, axis=0))
        places = op.Expand(op.Unsqueeze(ids, [0]), op.Shape(logits))
        return op.ScatterElements(blank, places, op.Cast(logits, to=F32), axis=1)

    def draw(self, op: OpBuilder, weights: ir.Value, u: ir.Value) -> ir.Value:
        """Per row the first token at which the running sum of weights [n, V] exceeds u [n] times its end, int64 [n]."""
        size = block_size(self.vocab)
        blocks, _ = in_blocks(op, weights, self.vocab, size)  # [n, A, B]
        ends = op.CumSum(op.ReduceSum(blocks, [2], keepdims=0), 1)  # [n, A]
        target = op.Mul(op.Unsqueeze(u, [1]), op.Slice(ends, [-1], [END], [1]))
        block = _place(op, ends, target)  # [n, 1]
        before = op.GatherElements(op.Pad(ends, [0, 1, 0, 0]), block, axis=1)
        inner = op.CumSum(op.GatherND(blocks, block, batch_dims=1), 1)  # [n, B]
        rest = op.Min(op.Sub(target, before), op.Mul(op.Slice(inner, [-1], [END], [1]), [LARGEST]))
        return op.Squeeze(op.Add(op.Mul(block, [size]), _place(op, inner, rest)), [1])

    def accepts(self, op: OpBuilder, p: ir.Value, q: ir.Value, drafts: ir.Value, u: ir.Value) -> ir.Value:
        """Which drafts int64 [n] are kept, bool [n]; one below 0 is none."""
        chosen = op.Unsqueeze(op.Max(drafts, [0]), [1])
        p, q = (op.Squeeze(op.GatherElements(x, chosen, axis=-1), [1]) for x in (p, q))
        return op.And(op.GreaterOrEqual(drafts, [0]), op.Less(op.Mul(u, q), p))

    def replace(self, op: OpBuilder, p: ir.Value, q: ir.Value, u: ir.Value) -> ir.Value:
        """Draws from max(0, p - q), or from p where nothing is left; int64 [n]."""
        left = op.Max(op.Sub(p, q), [0.0])
        some = op.Greater(op.ReduceSum(left, [-1], keepdims=1), [0.0])
        return self.draw(op, op.Where(some, left, p), u)


def _place(op: OpBuilder, running: ir.Value, target: ir.Value) -> ir.Value:
    """How many of the running sums [n, m] are at most target [n, 1], int64 [n, 1]."""
    return op.Cast(op.ReduceSum(op.Cast(op.LessOrEqual(running, target), to=F32), [1], keepdims=1), to=I64)
