"""Attention of several texts over their whole caches, in operators that every release of onnxruntime has on CUDA.

GroupQueryAttention takes several rows of several texts only with `query_seqlens`, which no CUDA wheel has yet. Here rows are
scattered into the caches, and scores of all cached positions are made and masked: products over the longest text for all of
them, without a size that depends on a value on the device. fused.py calls it.
"""

from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir
from onnxscript import OpBuilder

from mtpd_mlx.families.dims import Layer
from mtpd_onnx.dims import Dims
from mtpd_onnx.graphs.folding import MICROSOFT

I64 = ir.DataType.INT64
HIDDEN = {ir.DataType.FLOAT16: -6e4}  # added to scores that must not count
HIDDEN |= {kind: -1e30 for kind in (ir.DataType.FLOAT, ir.DataType.BFLOAT16)}


@dataclass
class Whole:
    """Which positions the rows are: `places` int64 [T, 2] (line, number in the line), `first` int64 [B]: the position of each
    line's row 0, `rows` int64 [B, S]: which of the T rows are the line's. reach int64 [1]: positions that are looked at, no
    fewer than any text has. Made once for a graph; masks and indices are kept for the layers that share them."""

    op: OpBuilder
    dtype: ir.DataType
    rows: ir.Value
    places: ir.Value
    first: ir.Value
    reach: ir.Value
    positions: ir.Value = field(init=False)  # int64 [1, T]
    _made: dict[Any, ir.Value] = field(default_factory=dict)

    def __post_init__(self) -> None:
        op = self.op
        line, number = (op.Squeeze(each, [1]) for each in op.Split(self.places, [1, 1], axis=1, _outputs=2))
        self.positions = op.Unsqueeze(op.Add(op.Gather(self.first, line), number), [0])
        self._lines = line

    def prepare(self, dims: Dims, layers: list[Layer]) -> None:
        """Makes what the layers of `dims` need, outside of the branches that they may be in."""
        for layer in layers:
            own = dims.as_if_all(layer)
            self._slots(own.num_kv_heads)
            self.mask(layer.window)

    def _slots(self, heads: int) -> ir.Value:
        """int64 [T, heads, 3]: where in a cache [B, heads, C, n] every row's keys go."""
        if heads not in self._made:
            op = self.op
            shape = op.Concat(op.Shape(self._lines), [heads, 1], axis=0)
            parts = [
                op.Expand(op.Unsqueeze(self._lines, [1, 2]), shape),
                op.Expand(op.Unsqueeze(list(range(heads)), [0, 2]), shape),
                op.Expand(op.Unsqueeze(op.Squeeze(self.positions, [0]), [1, 2]), shape),
            ]
            self._made[heads] = op.Concat(*parts, axis=2)
        return self._made[heads]

    def mask(self, window: int | None) -> ir.Value:
        """[B, 1, S, reach]: 0 where a row may look, of the last `window` positions."""
        key = "mask", window
        if key not in self._made:
            op = self.op
            count = op.Squeeze(op.Shape(self.rows, start=1, end=2), [0])
            seen = op.Add(op.Unsqueeze(self.first, [1]), op.Unsqueeze(op.Range(0, count, 1), [0]))  # [B, S]
            seen = op.Unsqueeze(seen, [1, 3])
            columns = op.Range(0, op.Squeeze(self.reach, [0]), 1)
            open_ = op.LessOrEqual(columns, seen)
            if window is not None:
                open_ = op.And(open_, op.Greater(columns, op.Sub(seen, [window])))
            kept, hidden = (op.Cast([number], to=self.dtype) for number in (0.0, HIDDEN[self.dtype]))
            self._made[key] = op.Where(open_, kept, hidden)
        return self._made[key]

    def attend(
        self,
        op: OpBuilder,
        dims: Dims,
        layer: Layer,
        rows: tuple[ir.Value, ir.Value, ir.Value],
        past: tuple[ir.Value, ir.Value],
        sinks: ir.Value | None,
    ) -> list[ir.Value]:
        """rows: q [1, T, H n], k and v [1, T, KV n], rotated. Returns the output [T, H n] and the caches."""
        (q, k, v), heads, kv, size = rows, dims.num_heads, dims.num_kv_heads, dims.head_dim
        slots, mask = self._slots(kv), self.mask(layer.window)
        caches = [op.ScatterND(old, slots, op.Reshape(new, [-1, kv, size])) for old, new in zip(past, (k, v), strict=True)]
        keys, values = (op.Slice(cache, [0], self.reach, [2]) for cache in caches)  # [B, KV, L, n]
        lines = op.Reshape(op.Gather(op.Squeeze(q, [0]), self.rows), [0, 0, heads, size])  # [B, S, H, n]
        q = op.Reshape(op.Transpose(lines, perm=[0, 2, 1, 3]), [0, kv, -1, size])  # the heads of one key head lie together
        scores = op.FusedMatMul(q, keys, transB=1, alpha=dims.attention_scale, _domain=MICROSOFT, _version=1)
        if dims.attention_softcap is not None:
            cap = op.Cast([dims.attention_softcap], to=self.dtype)
            scores = op.Mul(op.Tanh(op.Div(scores, cap)), cap)
        scores = op.Add(op.Reshape(scores, [0, heads, -1, 0]), mask)  # [B, H, S, L]
        shares = op.Softmax(scores, axis=-1) if sinks is None else _beside(op, scores, sinks)
        out = op.Reshape(op.MatMul(op.Reshape(shares, [0, kv, -1, 0]), values), [0, heads, -1, size])
        out = op.Reshape(op.Transpose(out, perm=[0, 2, 1, 3]), [0, 0, heads * size])  # [B, S, H n]
        return [op.GatherND(out, self.places), *caches]

    def rotated(self, op: OpBuilder, x: ir.Value, tables: tuple[ir.Value, ir.Value] | None, heads: int, dims: Dims) -> ir.Value:
        """x [1, T, heads n], each row at its own position."""
        if tables is None:
            return x
        part = {} if dims.rotary_dim == dims.head_dim else {"rotary_embedding_dim": dims.rotary_dim}
        rotate = {"interleaved": 0, "_domain": MICROSOFT, "_version": 1} | part
        return op.RotaryEmbedding(x, self.positions, *tables, num_heads=heads, **rotate)


def _beside(op: OpBuilder, scores: ir.Value, sinks: ir.Value) -> ir.Value:
    """Softmax of scores [B, H, S, L] beside one more score per head [H], whose share is left out."""
    shape = op.Concat(op.Shape(scores, start=0, end=3), [1], axis=0)
    column = op.Expand(op.Unsqueeze(sinks, [0, 2, 3]), shape)
    return op.Slice(op.Softmax(op.Concat(scores, column, axis=-1), axis=-1), [0], [-1], [3])
