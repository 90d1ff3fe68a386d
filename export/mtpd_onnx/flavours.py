"""How the modules' operations are spelt: with onnxruntime's fused operators, or with standard ONNX operators only.

Both flavours compute the same equations. `Fused`: activations [1, S, n], caches of fixed capacity updated in place by
GroupQueryAttention (com.microsoft). `Standard`: activations [S, n], caches that grow by concatenation.
"""

from dataclasses import dataclass
from typing import Protocol

import onnx_ir as ir
from onnxscript import OpBuilder

from mtpd_onnx.dims import Dims

MICROSOFT = "com.microsoft"
# Computed in on CUDA alone (precision.PROVIDERS), where GroupQueryAttention can apply the norms of queries and keys itself.
CUDA_TYPES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


@dataclass
class Cache:
    """Key and value cache of one block: what goes in and, after the block ran, what comes out."""

    past_key: ir.Value
    past_value: ir.Value
    key: ir.Value | None = None
    value: ir.Value | None = None


@dataclass
class Positions:
    """Which positions the rows of a call are.

    Fused: cos and sin are the whole tables [C, head_dim / 2], `last` int32 [B] is the position of each text's last row,
    `total` int32 [] the capacity, `lengths` int32 [B] how many rows of each text are real (None: all). Standard: cos and
    sin are the rows' own [S, head_dim / 2], `mask` float [S, cached] is 0 where a row may look and a large negative number
    elsewhere.
    """

    cos: ir.Value
    sin: ir.Value
    last: ir.Value | None = None
    total: ir.Value | None = None
    lengths: ir.Value | None = None
    mask: ir.Value | None = None


class Flavour(Protocol):
    def linear(self, op: OpBuilder, x: ir.Value, weight: ir.Value, bias: ir.Value | None) -> ir.Value:
        """x W^T + b, W [out, in]."""
        ...

    def rms_norm(self, op: OpBuilder, x: ir.Value, weight: ir.Value, eps: float) -> ir.Value: ...

    def add_norm(self, op: OpBuilder, x: ir.Value, y: ir.Value, weight: ir.Value, eps: float) -> tuple[ir.Value, ir.Value]:
        """(x + y, RMSNorm(x + y))."""
        ...

    def silu(self, op: OpBuilder, x: ir.Value) -> ir.Value: ...

    def attention(
        self, op: OpBuilder, dims: Dims, packed: ir.Value, norms: "QKNorms | None", cache: Cache, positions: Positions
    ) -> ir.Value:
        """Causal attention of packed [.., q + 2 kv] rows over the cache, which it extends. Returns [.., q]."""
        ...


@dataclass
class QKNorms:
    """Per-head norms of queries and keys (Qwen3): weights [head_dim]."""

    q: ir.Value
    k: ir.Value


def widened(op: OpBuilder, x: ir.Value) -> ir.Value:
    """bfloat16 as float32: onnxruntime's CUDA kernels of ArgMax, ReduceMin, ReduceMax, Less and CumSum do not take it."""
    return op.Cast(x, to=ir.DataType.FLOAT) if x.dtype == ir.DataType.BFLOAT16 else x


def _sizes(dims: Dims) -> tuple[int, int, int]:
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

    def attention(
        self, op: OpBuilder, dims: Dims, packed: ir.Value, norms: QKNorms | None, cache: Cache, positions: Positions
    ) -> ir.Value:
        sizes = _sizes(dims)
        q, k, v = packed, None, None  # GroupQueryAttention takes them packed
        inside = norms is not None and packed.dtype in CUDA_TYPES
        if norms is not None and not inside:
            q, k, v = op.Split(packed, list(sizes), axis=-1, _outputs=3)
            q = self._head_norm(op, q, norms.q, dims)
            k = self._head_norm(op, k, norms.k, dims)
        optional: list[ir.Value | None] = [None] * 7 + [positions.lengths]  # inputs 9..16
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
            positions.cos,
            positions.sin,
            *optional,
            num_heads=dims.num_heads,
            kv_num_heads=dims.num_kv_heads,
            scale=dims.head_dim**-0.5,
            do_rotary=1,
            rotary_interleaved=0,
            **({"qk_norm_epsilon": dims.rms_norm_eps} if inside else {}),
            _domain=MICROSOFT,
            _version=1,
            _outputs=3,
        )
        out.dtype, out.shape = packed.dtype, _replace_last(packed, sizes[0])
        for new, old in ((cache.key, cache.past_key), (cache.value, cache.past_value)):
            new.dtype, new.shape = old.dtype, old.shape
        return out

    def _head_norm(self, op: OpBuilder, x: ir.Value, weight: ir.Value, dims: Dims) -> ir.Value:
        heads = op.Reshape(x, [0, 0, -1, dims.head_dim])  # [B, S, heads, head_dim]
        return op.Reshape(self.rms_norm(op, heads, weight, dims.rms_norm_eps), [0, 0, -1])


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

    def attention(
        self, op: OpBuilder, dims: Dims, packed: ir.Value, norms: QKNorms | None, cache: Cache, positions: Positions
    ) -> ir.Value:
        parts = op.Split(packed, list(_sizes(dims)), axis=-1, _outputs=3)
        q, k, v = (op.Reshape(p, [0, -1, dims.head_dim]) for p in parts)  # [S, heads, head_dim]
        if norms is not None:
            q = self.rms_norm(op, q, norms.q, dims.rms_norm_eps)
            k = self.rms_norm(op, k, norms.k, dims.rms_norm_eps)
        q, k, v = (op.Transpose(p, perm=[1, 0, 2]) for p in (q, k, v))  # [heads, S, head_dim]
        q, k = _rotate(op, q, positions, dims.head_dim), _rotate(op, k, positions, dims.head_dim)
        cache.key = op.Concat(cache.past_key, k, axis=1)
        cache.value = op.Concat(cache.past_value, v, axis=1)
        q = op.Reshape(q, [dims.num_kv_heads, -1, dims.head_dim])  # query heads of one key head lie together
        scores = op.Mul(op.MatMul(q, op.Transpose(cache.key, perm=[0, 2, 1])), dims.head_dim**-0.5)
        mask = op.Tile(positions.mask, [dims.num_heads // dims.num_kv_heads, 1])  # [group * S, cached]
        out = op.MatMul(op.Softmax(op.Add(scores, mask), axis=-1), cache.value)
        out = op.Transpose(op.Reshape(out, [dims.num_heads, -1, dims.head_dim]), perm=[1, 0, 2])
        return op.Reshape(out, [0, -1])  # [S, heads * head_dim]


def _rotate(op: OpBuilder, x: ir.Value, positions: Positions, head_dim: int) -> ir.Value:
    """Rotary embedding of x [heads, S, head_dim]: the two halves are rotated against each other."""
    cos, sin = positions.cos, positions.sin
    a, b = op.Split(x, [head_dim // 2, head_dim // 2], axis=-1, _outputs=2)
    return op.Concat(op.Sub(op.Mul(a, cos), op.Mul(b, sin)), op.Add(op.Mul(b, cos), op.Mul(a, sin)), axis=-1)


def _replace_last(x: ir.Value, size: int | ir.SymbolicDim) -> ir.Shape | None:
    return None if x.shape is None else ir.Shape([*x.shape[:-1], size])
