"""`Fused`: the flavour of onnxruntime's operators.
Called by graphs/builder.py, for all layouts but the split one."""

from dataclasses import replace
from typing import Any

import onnx_ir as ir
from onnxscript import OpBuilder

from mtpd_mlx.families.dims import Experts, Layer, Recurrent
from mtpd_onnx.dims import Dims
from mtpd_onnx.graphs.branches import Kind, branches
from mtpd_onnx.graphs.delta import END, Given, Recurrence, RuleInputs, rows_of
from mtpd_onnx.graphs.flavours import (
    CUDA_TYPES,
    MICROSOFT,
    Cache,
    ExpertWeights,
    Positions,
    QKNorms,
    Spare,
    ones,
    packed_sizes,
    query_growth,
    widened,
)
from mtpd_onnx.graphs.folding import foldable, folded_attention
from mtpd_onnx.graphs.history import History, Taps, tapped
from mtpd_onnx.graphs.whole_caches import Whole


class Fused:
    """onnxruntime's operators. Every node has a CUDA kernel and reads no shape, so that a CUDA graph can hold it."""

    def linear(self, op: OpBuilder, x: ir.Value, weight: ir.Value, bias: ir.Value | None) -> ir.Value:
        y = op.FusedMatMul(x, weight, transB=1, _domain=MICROSOFT, _version=1)
        assert weight.shape is not None
        y.dtype, y.shape = weight.dtype, _replace_last(x, weight.shape[0])
        return y if bias is None else op.Add(y, bias)

    def rms_norm(self, op: OpBuilder, x: ir.Value, weight: ir.Value, eps: float) -> ir.Value:
        return op.RMSNormalization(x, weight, axis=-1, epsilon=eps)

    def add_norm(self, op: OpBuilder, x: ir.Value, y: ir.Value, weight: ir.Value, eps: float) -> tuple[ir.Value, ir.Value]:
        normed, _, _, total = op.SkipSimplifiedLayerNormalization(
            x, y, weight, epsilon=eps, _domain=MICROSOFT, _version=1, _outputs=4
        )
        for value in (normed, total):
            value.dtype, value.shape = x.dtype, x.shape
        for unused in normed.producer().outputs[1:3]:
            unused.name = ""  # an optional output left out
        return total, normed

    def silu(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        y = op.QuickGelu(x, alpha=1.0, _domain=MICROSOFT, _version=1)
        y.dtype, y.shape = x.dtype, x.shape
        return y

    def gelu(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        return op.Gelu(x, approximate="tanh")

    def experts(self, op: OpBuilder, experts: Experts, x: ir.Value, scores: ir.Value, w: ExpertWeights) -> ir.Value:
        y = op.MoE(
            x,
            op.Reshape(scores, [-1, experts.count]),
            w.gate_up,
            w.gate_up_bias,
            w.down,
            *([] if w.down_bias is None else [w.down_bias]),
            activation_type="swiglu",
            swiglu_fusion=1,
            activation_alpha=1.0 if experts.clip is None else experts.clip[0],
            activation_beta=0.0 if experts.clip is None else 1.0,
            swiglu_limit=float("inf") if experts.clip is None else experts.clip[1],
            k=experts.chosen,
            normalize_routing_weights=int(experts.normalized),
            _domain=MICROSOFT,
            _version=1,
        )
        y.dtype, y.shape = x.dtype, x.shape
        return y

    def convolution(self, op: OpBuilder, rows: ir.Value, taps: Taps, history: History, positions: Positions) -> ir.Value:
        places, alone = positions.places, positions.ragged is None
        assert places is not None and history.past.shape is not None
        width = history.past.shape[-1]
        history.rows = op.ScatterND(history.past, places.slots, op.Squeeze(rows, [0]) if alone else rows)
        history.rows.dtype, history.rows.shape = history.past.dtype, history.past.shape
        seen = op.Gather(op.Reshape(history.rows, [-1, width]), places.window)  # [k, S, n]
        out = tapped(op, op.Mul(seen, places.there), taps)
        out = out if alone else op.Squeeze(out, [0])
        out.dtype, out.shape = rows.dtype, rows.shape
        return out

    def recurrence(
        self, op: OpBuilder, kind: Recurrent, rows: ir.Value, given: Given, kept: Recurrence, positions: Positions
    ) -> ir.Value:
        """What is kept may be written where it lay: whoever writes reads it first."""
        journal = positions.journal
        assert journal is not None and kept.past_state is not None
        before = op.Mul(op.Squeeze(op.Gather(kept.past_rows, journal.before, axis=2), [1]), journal.there)
        seen = op.Concat(before, rows, axis=1)  # [1, P - anchor + k - 1 + S, n]
        seen.dtype, seen.shape = rows.dtype, ir.Shape([1, "seen", rows.shape[2] if rows.shape else None])
        new = op.Squeeze(op.Slice(seen, journal.kept, [END], [1]), [0])
        kept.rows = op.ScatterND(kept.past_rows, journal.slots, new)
        x = given(seen)
        state = op.Where(journal.begun, kept.past_state, op.CastLike(0.0, kept.past_state))
        first, kept.state = self._rule(op, kind, rows_of(op, x, [0], journal.commit), state)
        second, _ = self._rule(op, kind, rows_of(op, x, journal.commit, [END]), kept.state)
        y = op.Concat(first, second, axis=1)
        y = op.Slice(y if x.skip is None else op.Add(y, x.skip), journal.again, [END], [1])
        y.dtype, y.shape = rows.dtype, _replace_last(rows, kind.heads * kind.value)
        return y

    def _rule(self, op: OpBuilder, kind: Recurrent, x: RuleInputs, state: ir.Value) -> tuple[ir.Value, ir.Value]:
        y, next_state = op.LinearAttention(
            x.query,
            x.key,
            x.value,
            state,
            x.decay,
            *([] if x.beta is None else [x.beta]),
            q_num_heads=kind.heads,
            kv_num_heads=kind.heads,
            scale=x.scale,
            update_rule="gated" if x.beta is None else "gated_delta",
            _domain=MICROSOFT,
            _version=1,
            _outputs=2,
        )
        y.dtype, next_state.dtype = x.query.dtype, state.dtype
        return y, next_state

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
        ragged, spare = positions.ragged, positions.spare
        folding = ragged.folding if ragged is not None else None if spare is None else spare.folding
        past, tables = (cache.past_key, cache.past_value), positions.tables(layer)

        def folded(op: OpBuilder) -> list[ir.Value]:
            assert positions.total is not None and folding is not None
            rows = packed if ragged is None else op.Unsqueeze(packed, [0])
            q, k, v = op.Split(rows, list(packed_sizes(dims)), axis=-1, _outputs=3)
            if norms is not None:
                q, k = self._qk_norm(op, q, norms.q, dims), self._qk_norm(op, k, norms.k, dims)
            out, *caches = folded_attention(op, dims, (q, k, v), past, tables, positions.total, folding)
            return [out if ragged is None else op.Squeeze(out, [0]), *caches]

        def as_it_is(op: OpBuilder) -> list[ir.Value]:
            inner = Cache(*past)
            each = self._attention if ragged is None else self._ragged
            out = each(op, dims, layer, packed, norms, inner, positions, sinks)
            assert inner.key is not None and inner.value is not None
            return [out, inner.key, inner.value]

        if folding is None or not foldable(dims, layer):
            out, cache.key, cache.value = as_it_is(op)
            return out
        assert packed.dtype is not None
        width = packed_sizes(dims)[0]
        shapes: list[Any] = [[1, "S", width] if ragged is None else ["T", width], *(each.shape for each in past)]
        kinds: list[Kind] = [(packed.dtype, shape) for shape in shapes]
        name = f"attention.{cache.past_key.name}"
        out, cache.key, cache.value = branches(op, folding.wanted, name, kinds, folded, as_it_is)
        return out

    def _ragged(
        self,
        op: OpBuilder,
        dims: Dims,
        layer: Layer,
        packed: ir.Value,
        norms: QKNorms | None,
        cache: Cache,
        positions: Positions,
        sinks: ir.Value | None,
    ) -> ir.Value:
        """Of packed rows [T, n]: each text's on a line of its own for attention, which knows how many of them are real."""
        ragged = positions.ragged
        assert ragged is not None
        if ragged.whole is not None:
            return self._over_whole(op, dims, layer, packed, norms, cache, positions, ragged.whole, sinks)
        lines = op.Gather(packed, ragged.rows)  # [B, S, n]
        lines.dtype, lines.shape = packed.dtype, ir.Shape(["B", "S", sum(packed_sizes(dims))])
        out = self._attention(op, dims, layer, lines, norms, cache, replace(positions, ragged=None), sinks)
        rows = op.GatherND(out, ragged.places)
        rows.dtype, rows.shape = out.dtype, ir.Shape(["T", packed_sizes(dims)[0]])
        return rows

    def _over_whole(
        self,
        op: OpBuilder,
        dims: Dims,
        layer: Layer,
        packed: ir.Value,
        norms: QKNorms | None,
        cache: Cache,
        positions: Positions,
        whole: Whole,
        sinks: ir.Value | None,
    ) -> ir.Value:
        """The same without GroupQueryAttention (whole_caches.py)."""
        tables = positions.tables(layer)
        q, k, v = op.Split(op.Unsqueeze(packed, [0]), list(packed_sizes(dims)), axis=-1, _outputs=3)
        if norms is not None:
            q, k = self._qk_norm(op, q, norms.q, dims), self._qk_norm(op, k, norms.k, dims)
        q = whole.rotated(op, q, tables, dims.num_heads, dims)
        k = whole.rotated(op, k, tables, dims.num_kv_heads, dims)
        if dims.query_growth is not None:
            growth = query_growth(op, op.Cast(whole.positions, to=ir.DataType.FLOAT), dims.query_growth)
            q = op.Mul(q, op.CastLike(op.Unsqueeze(growth, [2]), q))
        out, cache.key, cache.value = whole.attend(op, dims, layer, (q, k, v), (cache.past_key, cache.past_value), sinks)
        for made, old in ((cache.key, cache.past_key), (cache.value, cache.past_value)):
            made.type, made.shape = old.type, old.shape
        out.type, out.shape = packed.type, ir.Shape(["T", packed_sizes(dims)[0]])
        return out

    def _attention(
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
        sizes, tables = packed_sizes(dims), positions.tables(layer)
        if (spare := positions.spare) is not None:
            packed, positions = _padded(op, packed, spare), replace(positions, last=spare.last)
        q, k, v = packed, None, None  # GroupQueryAttention takes them packed
        on_cuda = packed.dtype in CUDA_TYPES and tables is not None and dims.query_growth is None
        inside = norms is not None and on_cuda and dims.qk_norm != "all"
        if norms is not None and not inside:
            q, k, v = op.Split(packed, list(sizes), axis=-1, _outputs=3)
            q = self._qk_norm(op, q, norms.q, dims)
            k = self._qk_norm(op, k, norms.k, dims)
        if dims.query_growth is not None:
            if k is None:
                q, k, v = op.Split(packed, list(sizes), axis=-1, _outputs=3)
            growth = query_growth(op, self._rows(op, packed, positions), dims.query_growth)
            q = op.Mul(q, op.CastLike(op.Unsqueeze(growth, [2]), q))
        optional: list[ir.Value | None] = [None, None, sinks, *[None] * 4, positions.lengths]  # inputs 9..16
        if norms is not None and inside:
            optional[5:7] = [norms.q, norms.k]
        while optional and optional[-1] is None:
            optional.pop()
        out, cache.key, cache.value = op.GroupQueryAttention(
            q,
            k,
            v,
            cache.past_key,
            cache.past_value,
            positions.last,
            positions.total,
            *(tables or (None, None)),
            *optional,
            num_heads=dims.num_heads,
            kv_num_heads=dims.num_kv_heads,
            scale=dims.attention_scale,
            do_rotary=int(tables is not None),
            rotary_interleaved=0,
            **({"qk_norm_epsilon": dims.rms_norm_eps} if inside else {}),
            local_window_size=-1 if layer.window is None else layer.window,
            softcap=dims.attention_softcap or 0.0,
            _domain=MICROSOFT,
            _version=1,
            _outputs=3,
        )
        out.dtype, out.shape = packed.dtype, _replace_last(packed, sizes[0])
        for new, old in ((cache.key, cache.past_key), (cache.value, cache.past_value)):
            new.dtype, new.shape = old.dtype, old.shape
        return out if spare is None else op.Slice(out, [0], spare.rows, [1])

    def _rows(self, op: OpBuilder, x: ir.Value, positions: Positions) -> ir.Value:
        """float32 [B, S]: the positions of the rows of x [B, S, n]. Counted, because a CUDA graph reads no shapes."""
        column = widened(op, op.Squeeze(op.Slice(x, [0], [1], [2]), [2]))
        ones = op.Cast(op.Equal(column, column), to=ir.DataType.FLOAT)
        length = op.ReduceSum(ones, [1], keepdims=1)
        if positions.lengths is not None:
            length = op.Unsqueeze(op.Cast(positions.lengths, to=ir.DataType.FLOAT), [1])
        before = op.Sub(op.Unsqueeze(op.Cast(positions.last, to=ir.DataType.FLOAT), [1]), op.Sub(length, 1.0))
        return op.Add(before, op.CumSum(ones, 1, exclusive=1))

    def value_norm(self, op: OpBuilder, x: ir.Value, dims: Dims) -> ir.Value:
        before = [0] * (2 if x.shape is None else len(x.shape) - 1)
        heads = op.Reshape(x, [*before, -1, dims.head_dim])  # [.., heads, head_dim]
        return op.Reshape(self.rms_norm(op, heads, ones(op, x, dims), dims.rms_norm_eps), [*before, -1])

    def _qk_norm(self, op: OpBuilder, x: ir.Value, weight: ir.Value, dims: Dims) -> ir.Value:
        if dims.qk_norm == "all":
            return self.rms_norm(op, x, weight, dims.rms_norm_eps)
        heads = op.Reshape(x, [0, 0, -1, dims.head_dim])  # [B, S, heads, head_dim]
        return op.Reshape(self.rms_norm(op, heads, weight, dims.rms_norm_eps), [0, 0, -1])


def _padded(op: OpBuilder, x: ir.Value, spare: Spare) -> ir.Value:
    y = op.Pad(x, spare.pads)
    assert x.shape is not None
    y.dtype, y.shape = x.dtype, ir.Shape([1, "S + spare", x.shape[2]])
    return y


def _replace_last(x: ir.Value, size: int | ir.SymbolicDim) -> ir.Shape | None:
    return None if x.shape is None else ir.Shape([*x.shape[:-1], size])
