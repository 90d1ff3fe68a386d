"""`Standard`: the flavour of standard ONNX operators only.
Called by graphs/split.py."""

import math

import onnx_ir as ir
from onnxscript import OpBuilder

from mtpd_mlx.families.dims import Experts, Layer, Recurrent
from mtpd_onnx.dims import Dims
from mtpd_onnx.graphs.delta import END, Given, Recurrence, row_size, scanned
from mtpd_onnx.graphs.flavours import Cache, ExpertWeights, Positions, QKNorms, ones, packed_sizes, query_growth
from mtpd_onnx.graphs.history import History, Taps, tapped


class Standard:
    """ONNX operators of opset 18 only; cos and sin of `positions` are the rows' own. Norms are computed in float32."""

    def linear(self, op: OpBuilder, x: ir.Value, weight: ir.Value, bias: ir.Value | None) -> ir.Value:
        return op.Gemm(x, weight, *([] if bias is None else [bias]), transB=1)

    def rms_norm(self, op: OpBuilder, x: ir.Value, weight: ir.Value, eps: float) -> ir.Value:
        wide = op.Cast(x, to=ir.DataType.FLOAT)
        mean = op.ReduceMean(op.Mul(wide, wide), [-1], keepdims=1)
        normed = op.Div(wide, op.Sqrt(op.Add(mean, eps)))
        return op.Mul(op.Cast(normed, to=weight.dtype), weight)

    def add_norm(self, op: OpBuilder, x: ir.Value, y: ir.Value, weight: ir.Value, eps: float) -> tuple[ir.Value, ir.Value]:
        total = op.Add(x, y)
        return total, self.rms_norm(op, total, weight, eps)

    def silu(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        return op.Mul(x, op.Sigmoid(x))

    def gelu(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        inner = op.Mul(op.Add(x, op.Mul(op.Mul(op.Mul(x, x), x), 0.044715)), math.sqrt(2.0 / math.pi))
        return op.Mul(op.Mul(x, 0.5), op.Add(op.Tanh(inner), 1.0))

    def experts(self, op: OpBuilder, experts: Experts, x: ir.Value, scores: ir.Value, w: "ExpertWeights") -> ir.Value:
        """Every expert works on every row; those not chosen have weight 0."""
        best, which = op.TopK(op.Softmax(scores, axis=-1), [experts.chosen], axis=-1, _outputs=2)  # [S, k]
        if experts.normalized:
            best = op.Div(best, op.ReduceSum(best, [-1], keepdims=1))
        share = op.ScatterElements(op.Mul(scores, 0.0), which, best, axis=-1)  # [S, E]
        both = op.MatMul(x, op.Transpose(w.gate_up, perm=[0, 2, 1]))  # [E, S, 2 size]: gate, up, gate, up ...
        if w.gate_up_bias is not None:
            both = op.Add(both, op.Unsqueeze(w.gate_up_bias, [1]))
        pairs = op.Reshape(both, [experts.count, -1, experts.size, 2])
        gate, up = (op.Squeeze(p, [3]) for p in op.Split(pairs, [1, 1], axis=3, _outputs=2))
        y = op.MatMul(self._gated(op, experts, gate, up), op.Transpose(w.down, perm=[0, 2, 1]))  # [E, S, d]
        if w.down_bias is not None:
            y = op.Add(y, op.Unsqueeze(w.down_bias, [1]))
        return op.ReduceSum(op.Mul(y, op.Unsqueeze(op.Transpose(share, perm=[1, 0]), [2])), [0], keepdims=0)

    def value_norm(self, op: OpBuilder, x: ir.Value, dims: Dims) -> ir.Value:
        heads = op.Reshape(x, [0, -1, dims.head_dim])  # [S, heads, head_dim]
        return op.Reshape(self.rms_norm(op, heads, ones(op, x, dims), dims.rms_norm_eps), [0, -1])

    def convolution(self, op: OpBuilder, rows: ir.Value, taps: Taps, history: History, positions: Positions) -> ir.Value:
        """Of rows [S, n]."""
        assert taps.weights.shape is not None and history.past.shape is not None
        kernel, width = (int(taps.weights.shape[i]) for i in (0, 2))  # type: ignore[arg-type]
        history.rows = op.Concat(history.past, op.Unsqueeze(rows, [0]), axis=1)  # [1, T, n]
        before = op.Expand(op.CastLike([0.0], rows), [1, kernel - 1, width])
        known = op.Concat(before, history.rows, axis=1)
        end = op.Shape(known, start=1, end=2)  # [1]: k - 1 + T
        size = op.Shape(rows, start=0, end=1)
        starts = [op.Sub(op.Sub(end, size), [back]) for back in range(kernel - 1, -1, -1)]
        seen = op.Concat(*(op.Slice(known, start, op.Add(start, size), [1]) for start in starts), axis=0)  # [k, S, n]
        return op.Squeeze(tapped(op, seen, taps), [0])

    def recurrence(
        self, op: OpBuilder, kind: Recurrent, rows: ir.Value, given: Given, kept: Recurrence, positions: Positions
    ) -> ir.Value:
        """Of rows [S, n], from the start of the text on: slow, and nothing has to be taken back."""
        kept.rows = op.Concat(kept.past_rows, op.Unsqueeze(rows, [0]), axis=1)  # [1, T, n]
        before = op.Expand(op.CastLike([0.0], rows), [1, kind.kernel - 1, row_size(kind)])
        seen = op.Concat(before, kept.rows, axis=1)
        seen.dtype, seen.shape = rows.dtype, ir.Shape([1, "seen", row_size(kind)])
        y = scanned(op, kind, given(seen))
        return op.Slice(y, op.Neg(op.Shape(rows, start=0, end=1)), [END], [0])

    def attention(
        self,
        op: OpBuilder,
        dims: Dims,
        layer: Layer,
        packed: ir.Value,
        norms: QKNorms | None,
        cache: Cache,
        positions: Positions,
        sinks: ir.Value | None = None,
    ) -> ir.Value:
        q, k, v = op.Split(packed, list(packed_sizes(dims)), axis=-1, _outputs=3)
        if norms is not None and dims.qk_norm == "all":
            q = self.rms_norm(op, q, norms.q, dims.rms_norm_eps)
            k = self.rms_norm(op, k, norms.k, dims.rms_norm_eps)
        q, k, v = (op.Reshape(p, [0, -1, dims.head_dim]) for p in (q, k, v))  # [S, heads, head_dim]
        if norms is not None and dims.qk_norm == "head":
            q = self.rms_norm(op, q, norms.q, dims.rms_norm_eps)
            k = self.rms_norm(op, k, norms.k, dims.rms_norm_eps)
        q, k, v = (op.Transpose(p, perm=[1, 0, 2]) for p in (q, k, v))  # [heads, S, head_dim]
        if (tables := positions.tables(layer)) is not None:
            q, k = _rotate(op, q, tables, dims), _rotate(op, k, tables, dims)
        if dims.query_growth is not None:
            growth = query_growth(op, op.Cast(positions.rows, to=ir.DataType.FLOAT), dims.query_growth)
            q = op.Mul(q, op.CastLike(op.Unsqueeze(growth, [1]), q))
        cache.key = op.Concat(cache.past_key, k, axis=1)
        cache.value = op.Concat(cache.past_value, v, axis=1)
        q = op.Reshape(q, [dims.num_kv_heads, -1, dims.head_dim])  # query heads of one key head lie together
        scores = op.Mul(op.MatMul(q, op.Transpose(cache.key, perm=[0, 2, 1])), dims.attention_scale)
        if dims.attention_softcap is not None:
            scores = op.Mul(op.Tanh(op.Div(scores, dims.attention_softcap)), dims.attention_softcap)
        mask = op.Tile(_windowed(op, positions, layer), [dims.num_heads // dims.num_kv_heads, 1])  # [group * S, cached]
        scores = op.Add(scores, mask)
        shares = op.Softmax(scores, axis=-1) if sinks is None else self._with_sinks(op, scores, sinks, dims)
        out = op.MatMul(shares, cache.value)
        out = op.Transpose(op.Reshape(out, [dims.num_heads, -1, dims.head_dim]), perm=[1, 0, 2])
        return op.Reshape(out, [0, -1])  # [S, heads * head_dim]

    def _with_sinks(self, op: OpBuilder, scores: ir.Value, sinks: ir.Value, dims: Dims) -> ir.Value:
        """Softmax of scores [kv heads, group * S, cached] beside one more score per head [heads], whose share is left out."""
        size = op.Concat([dims.num_heads, -1], op.Shape(scores, start=2, end=3), axis=0)
        heads = op.Reshape(scores, size)  # [heads, S, cached]
        column = op.Expand(op.Unsqueeze(sinks, [1, 2]), op.Concat(op.Shape(heads, start=0, end=2), [1], axis=0))
        shares = op.Softmax(op.Concat(heads, column, axis=-1), axis=-1)
        return op.Reshape(op.Slice(shares, [0], [-1], [2]), op.Shape(scores))

    def _gated(self, op: OpBuilder, experts: Experts, gate: ir.Value, up: ir.Value) -> ir.Value:
        if experts.clip is None:
            return op.Mul(self.silu(op, gate), up)
        alpha, limit = experts.clip
        gate, up = op.Min(gate, op.CastLike(limit, gate)), op.Clip(up, op.CastLike(-limit, up), op.CastLike(limit, up))
        return op.Mul(op.Add(up, 1.0), op.Mul(gate, op.Sigmoid(op.Mul(gate, alpha))))


def _windowed(op: OpBuilder, positions: Positions, layer: Layer) -> ir.Value:
    """The mask [S, cached], closed before the window of a sliding layer."""
    assert positions.mask is not None
    if layer.window is None:
        return positions.mask
    cached = op.Squeeze(op.Shape(positions.mask, start=1, end=2), [0])
    columns = op.Unsqueeze(op.Range(0, cached, 1), [0])
    oldest = op.Unsqueeze(op.Sub(positions.rows, [layer.window - 1]), [1])
    low = -1e4 if positions.mask.dtype == ir.DataType.FLOAT16 else -1e9
    return op.Where(op.Less(columns, oldest), op.CastLike([low], positions.mask), positions.mask)


def _rotate(op: OpBuilder, x: ir.Value, tables: tuple[ir.Value, ir.Value], dims: Dims) -> ir.Value:
    """Rotary embedding of x [heads, S, head_dim]: the two halves of its first rotary_dim are rotated against each other."""
    (cos, sin), half, rest = tables, dims.rotary_dim // 2, dims.head_dim - dims.rotary_dim
    a, b, *kept = op.Split(x, [half, half] + [rest] * (rest > 0), axis=-1, _outputs=2 + (rest > 0))
    rotated = [op.Sub(op.Mul(a, cos), op.Mul(b, sin)), op.Add(op.Mul(b, cos), op.Mul(a, sin))]
    return op.Concat(*rotated, *kept, axis=-1)
