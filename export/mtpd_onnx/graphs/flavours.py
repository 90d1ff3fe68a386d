"""How the modules' operations are spelt: with onnxruntime's fused operators, or with standard ONNX operators only.

Both flavours compute the same equations. `Fused`: activations [1, S, n], caches of fixed capacity updated in place by
GroupQueryAttention (com.microsoft). `Standard` (standard.py): activations [S, n], caches that grow by concatenation.
"""

from dataclasses import dataclass, replace
from typing import Any, Protocol

import onnx_ir as ir
from onnxscript import OpBuilder

from mtpd_mlx.families.dims import Experts, Layer
from mtpd_onnx.dims import Dims
from mtpd_onnx.graphs.branches import Kind, branches
from mtpd_onnx.graphs.folding import MICROSOFT as MICROSOFT
from mtpd_onnx.graphs.folding import Folding, foldable, folded_attention
from mtpd_onnx.graphs.history import History, Places, Taps, tapped
from mtpd_onnx.graphs.whole_caches import Whole

# Computed in on CUDA alone (precision.PROVIDERS), where GroupQueryAttention can apply the norms of queries and keys itself.
CUDA_TYPES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


@dataclass
class Cache:
    """Key and value cache of one block: what goes in and, after the block ran, what comes out."""

    past_key: ir.Value
    past_value: ir.Value
    key: ir.Value | None = None
    value: ir.Value | None = None


Kept = Cache | History  # what a block keeps of the positions before


@dataclass
class Spare:
    """A row of zeros that attention computes with a call of one row, so that it sums up as it does for several.

    onnxruntime multiplies one row by the cached values with another kernel than two or more rows, and gets other last bits.
    `rows` int64 [1]: S; `pads` int64 [6]: what Pad adds to [1, S, n], one row where S is 1 and the cache has room for it;
    `last` int32 [1]: the position of the last row, the spare one included. What it leaves in the cache is never looked at.
    `folding`: for layers that need no spare row, because they can fold their heads into rows.
    """

    rows: ir.Value
    pads: ir.Value
    last: ir.Value
    folding: Folding | None = None


@dataclass
class Ragged:
    """Rows of several texts, one text behind the other [T, n], and where they lie where each text has a line of its own.

    rows int64 [B, S]: which of the T rows are those of text b, then any others; places int64 [T, 2]: (b, s) of every row.
    folding: for runs of a single text. whole: on CUDA, what takes the place of GroupQueryAttention.
    """

    rows: ir.Value
    places: ir.Value
    folding: Folding | None = None
    whole: Whole | None = None


@dataclass
class Positions:
    """Which positions the rows of a call are.

    Fused: cos and sin are the whole tables [C, rotary_dim / 2], `last` int32 [B] is the position of each text's last row,
    `total` int32 [] the capacity, `lengths` int32 [B] how many rows of each text are real (None: all). Standard: cos and
    sin are the rows' own [S, rotary_dim / 2], `mask` float [S, cached] is 0 where a row may look and a large negative number
    elsewhere, `rows` int64 [S] are the positions. `local`: cos and sin of sliding layers that have their own. `spare`: None
    where the sums of a single row may end in other bits. `ragged`: activations are [T, n], the rows of B texts. `places`: of
    the rows in the histories of convolutions, fused.
    """

    cos: ir.Value
    sin: ir.Value
    last: ir.Value | None = None
    total: ir.Value | None = None
    lengths: ir.Value | None = None
    mask: ir.Value | None = None
    rows: ir.Value | None = None
    local: tuple[ir.Value, ir.Value] | None = None
    spare: Spare | None = None
    ragged: Ragged | None = None
    places: Places | None = None

    def tables(self, layer: Layer) -> tuple[ir.Value, ir.Value] | None:
        """cos and sin of one kind of layer; None where it does not rotate."""
        return {"global": (self.cos, self.sin), "local": self.local, "none": None}[layer.rope]


class Flavour(Protocol):
    def linear(self, op: OpBuilder, x: ir.Value, weight: ir.Value, bias: ir.Value | None) -> ir.Value:
        """x W^T + b, W [out, in]."""
        ...

    def rms_norm(self, op: OpBuilder, x: ir.Value, weight: ir.Value, eps: float) -> ir.Value: ...

    def add_norm(self, op: OpBuilder, x: ir.Value, y: ir.Value, weight: ir.Value, eps: float) -> tuple[ir.Value, ir.Value]:
        """(x + y, RMSNorm(x + y))."""
        ...

    def silu(self, op: OpBuilder, x: ir.Value) -> ir.Value: ...

    def gelu(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        """The tanh approximation, as Gemma uses it."""
        ...

    def experts(self, op: OpBuilder, experts: Experts, x: ir.Value, scores: ir.Value, w: "ExpertWeights") -> ir.Value:
        """The mixture of x [.., d] by router scores [.., E]."""
        ...

    def value_norm(self, op: OpBuilder, x: ir.Value, dims: Dims) -> ir.Value:
        """RMSNorm of each head of x [.., heads * head_dim], without weights."""
        ...

    def attention(
        self,
        op: OpBuilder,
        dims: Dims,
        layer: Layer,
        packed: ir.Value,
        norms: "QKNorms | None",
        cache: Cache,
        positions: Positions,
        sinks: ir.Value | None = None,
    ) -> ir.Value:
        """Causal attention of packed [.., q + 2 kv] rows over the cache, which it extends. Returns [.., q]."""
        ...

    def convolution(self, op: OpBuilder, rows: ir.Value, taps: Taps, history: History, positions: Positions) -> ir.Value:
        """Causal convolution of rows [.., n] over the history, which it extends."""
        ...


@dataclass
class ExpertWeights:
    """gate and up, row by row [E, 2 size, d], down [E, d, size], and what is added to their products [E, 2 size], [E, d]."""

    gate_up: ir.Value
    down: ir.Value
    gate_up_bias: ir.Value | None = None
    down_bias: ir.Value | None = None


@dataclass
class QKNorms:
    """Norms of queries and keys: weights [head_dim], or [heads * head_dim] where they go over all heads."""

    q: ir.Value
    k: ir.Value


def widened(op: OpBuilder, x: ir.Value) -> ir.Value:
    """bfloat16 as float32: onnxruntime's CUDA kernels of ArgMax, ReduceMin, ReduceMax, Less and CumSum do not take it."""
    return op.Cast(x, to=ir.DataType.FLOAT) if x.dtype == ir.DataType.BFLOAT16 else x


def packed_sizes(dims: Dims) -> tuple[int, int, int]:
    kv = dims.num_kv_heads * dims.head_dim
    return dims.num_heads * dims.head_dim, kv, kv


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

    def experts(self, op: OpBuilder, experts: Experts, x: ir.Value, scores: ir.Value, w: "ExpertWeights") -> ir.Value:
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


def ones(op: OpBuilder, x: ir.Value, dims: Dims) -> ir.Value:
    """[head_dim], of x's type."""
    ones = op.CastLike([1.0] * dims.head_dim, x)
    ones.dtype, ones.shape = x.dtype, ir.Shape([dims.head_dim])
    return ones


def _padded(op: OpBuilder, x: ir.Value, spare: Spare) -> ir.Value:
    y = op.Pad(x, spare.pads)
    assert x.shape is not None
    y.dtype, y.shape = x.dtype, ir.Shape([1, "S + spare", x.shape[2]])
    return y


def query_growth(op: OpBuilder, rows: ir.Value, growth: tuple[float, int]) -> ir.Value:
    """1 + beta log(1 + floor(position / n)), float32, of `rows` (whole numbers in float32)."""
    beta, n = growth
    return op.Add(op.Mul(op.Log(op.Add(op.Floor(op.Div(rows, float(n))), 1.0)), beta), 1.0)


def _replace_last(x: ir.Value, size: int | ir.SymbolicDim) -> ir.Shape | None:
    return None if x.shape is None else ir.Shape([*x.shape[:-1], size])
