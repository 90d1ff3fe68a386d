"""Torch-shaped ONNX modules of a Llama-class decoder and its MTP heads.

Batch is 1, so activations are two-dimensional: hidden [S, d]. Parameter names follow the Hugging Face paths, except that
q/k/v and gate/up are packed (`qkv_proj`, `gate_up_proj`): packing.py says what each parameter is made of.
Two attention flavours share everything else: `GroupQueryAttention` (com.microsoft, shared in-place caches) and
`StandardAttention` (ONNX operators only, growing caches).
"""

from dataclasses import dataclass

import onnx_ir as ir
from onnxscript import OpBuilder
from onnxscript.nn import Module, ModuleList, Parameter

from mtpd_onnx.dims import Dims

MICROSOFT = "com.microsoft"


@dataclass
class Cache:
    """Key and value cache of one block: what goes in and, after the block ran, what comes out."""

    past_key: ir.Value
    past_value: ir.Value
    key: ir.Value | None = None
    value: ir.Value | None = None


@dataclass
class Positions:
    """Where the rows of an attention call are. GQA: seqlens (int32 [1], cached positions after the call - 1) and total
    (int32 [], capacity). Standard: rows (int64 [S], absolute positions) and mask (float [S, cached], 0 or a large
    negative number)."""

    cos: ir.Value
    sin: ir.Value
    seqlens: ir.Value | None = None
    total: ir.Value | None = None
    rows: ir.Value | None = None
    mask: ir.Value | None = None


class RMSNorm(Module):
    def __init__(self, size: int, eps: float, dtype: ir.DataType):
        super().__init__()
        self.weight = Parameter([size], dtype)
        self.eps = eps

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        return op.RMSNormalization(x, self.weight, axis=-1, epsilon=self.eps)


class Linear(Module):
    """y = x W^T + b; W is stored [out, in] as in Hugging Face files."""

    def __init__(self, inputs: int, outputs: int, dtype: ir.DataType, bias: bool = False):
        super().__init__()
        self.weight = Parameter([outputs, inputs], dtype)
        self.bias = Parameter([outputs], dtype) if bias else None

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        arguments = [x, self.weight] + ([self.bias] if self.bias is not None else [])
        return op.Gemm(*arguments, transB=1)


class Embedding(Module):
    """Token ids [S] -> [S, d]; `as_linear` is the tied output head."""

    def __init__(self, vocab: int, size: int, dtype: ir.DataType):
        super().__init__()
        self.weight = Parameter([vocab, size], dtype)

    def forward(self, op: OpBuilder, tokens: ir.Value) -> ir.Value:
        return op.Gather(self.weight, tokens)

    def as_linear(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        return op.Gemm(x, self.weight, transB=1)


class Attention(Module):
    """Packed projection, optional per-head q/k norms (Qwen3), attention with a cache, output projection."""

    def __init__(self, dims: Dims, dtype: ir.DataType):
        super().__init__()
        self.dims = dims
        self.q_size, self.kv_size = dims.num_heads * dims.head_dim, dims.num_kv_heads * dims.head_dim
        self.qkv_proj = Linear(dims.hidden_size, self.q_size + 2 * self.kv_size, dtype, dims.qkv_bias)
        self.o_proj = Linear(self.q_size, dims.hidden_size, dtype, dims.o_bias)
        if dims.qk_norm:
            self.q_norm = RMSNorm(dims.head_dim, dims.rms_norm_eps, dtype)
            self.k_norm = RMSNorm(dims.head_dim, dims.rms_norm_eps, dtype)

    def forward(self, op: OpBuilder, x: ir.Value, cache: Cache, positions: Positions) -> ir.Value:
        packed = self.qkv_proj(op, x)  # [S, q + 2 kv]
        attend = self._gqa if positions.seqlens is not None else self._standard
        return self.o_proj(op, attend(op, packed, cache, positions))

    def _split(self, op: OpBuilder, packed: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value]:
        """q [S, heads, head_dim], k and v [S, kv heads, head_dim], q and k normalised where the family does it."""
        sizes = [self.q_size, self.kv_size, self.kv_size]
        parts = op.Split(packed, op.Constant(value_ints=sizes), axis=-1, _outputs=3)
        q, k, v = (op.Reshape(p, op.Constant(value_ints=[0, -1, self.dims.head_dim])) for p in parts)
        if self.dims.qk_norm:
            q, k = self.q_norm(op, q), self.k_norm(op, k)
        return q, k, v

    def _gqa(self, op: OpBuilder, packed: ir.Value, cache: Cache, positions: Positions) -> ir.Value:
        first = op.Constant(value_ints=[0])
        if self.dims.qk_norm:
            flat = op.Constant(value_ints=[1, 0, -1])  # [S, heads, head_dim] -> [1, S, heads * head_dim]
            q, k, v = (
                op.Reshape(op.Unsqueeze(p, first), op.Constant(value_ints=[1, -1, n]))
                for p, n in zip(self._split(op, packed), (self.q_size, self.kv_size, self.kv_size), strict=True)
            )
            del flat
        else:
            q, k, v = op.Unsqueeze(packed, first), None, None
        out, cache.key, cache.value = op.GroupQueryAttention(
            q,
            k,
            v,
            cache.past_key,
            cache.past_value,
            positions.seqlens,
            positions.total,
            positions.cos,
            positions.sin,
            num_heads=self.dims.num_heads,
            kv_num_heads=self.dims.num_kv_heads,
            scale=self.dims.head_dim**-0.5,
            do_rotary=1,
            rotary_interleaved=0,
            _domain=MICROSOFT,
            _version=1,
            _outputs=3,
        )
        return op.Squeeze(out, first)

    def _standard(self, op: OpBuilder, packed: ir.Value, cache: Cache, positions: Positions) -> ir.Value:
        q, k, v = (op.Transpose(p, perm=[1, 0, 2]) for p in self._split(op, packed))  # [heads, S, head_dim]
        q, k = rotate(op, q, positions, self.dims.head_dim), rotate(op, k, positions, self.dims.head_dim)
        cache.key = op.Concat(cache.past_key, k, axis=1)
        cache.value = op.Concat(cache.past_value, v, axis=1)
        group = self.dims.num_heads // self.dims.num_kv_heads
        shape = op.Constant(value_ints=[self.dims.num_kv_heads, -1, self.dims.head_dim])
        q = op.Reshape(q, shape)  # [kv, group * S, head_dim]: query heads of one key head lie together
        scores = op.Mul(op.MatMul(q, op.Transpose(cache.key, perm=[0, 2, 1])), self.dims.head_dim**-0.5)
        mask = op.Tile(positions.mask, op.Constant(value_ints=[group, 1]))  # [group * S, cached]
        out = op.MatMul(op.Softmax(op.Add(scores, mask), axis=-1), cache.value)
        split = op.Constant(value_ints=[self.dims.num_heads, -1, self.dims.head_dim])
        out = op.Transpose(op.Reshape(out, split), perm=[1, 0, 2])  # [S, heads, head_dim]
        return op.Reshape(out, op.Constant(value_ints=[0, -1]))


def rotate(op: OpBuilder, x: ir.Value, positions: Positions, head_dim: int) -> ir.Value:
    """Rotary embedding of x [heads, S, head_dim], halves rotated against each other."""
    cos, sin = op.Gather(positions.cos, positions.rows), op.Gather(positions.sin, positions.rows)  # [S, head_dim / 2]
    half = head_dim // 2
    a, b = op.Split(x, op.Constant(value_ints=[half, half]), axis=-1, _outputs=2)
    first = op.Sub(op.Mul(a, cos), op.Mul(b, sin))
    return op.Concat(first, op.Add(op.Mul(b, cos), op.Mul(a, sin)), axis=-1)


class MLP(Module):
    """SwiGLU with gate and up in one product."""

    def __init__(self, dims: Dims, dtype: ir.DataType):
        super().__init__()
        self.size = dims.intermediate_size
        self.gate_up_proj = Linear(dims.hidden_size, 2 * self.size, dtype, dims.mlp_bias)
        self.down_proj = Linear(self.size, dims.hidden_size, dtype, dims.mlp_bias)

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        sizes = op.Constant(value_ints=[self.size, self.size])
        gate, up = op.Split(self.gate_up_proj(op, x), sizes, axis=-1, _outputs=2)
        return self.down_proj(op, op.Mul(op.Mul(gate, op.Sigmoid(gate)), up))


class Block(Module):
    """A pre-norm decoder block."""

    def __init__(self, dims: Dims, dtype: ir.DataType):
        super().__init__()
        self.input_layernorm = RMSNorm(dims.hidden_size, dims.rms_norm_eps, dtype)
        self.self_attn = Attention(dims, dtype)
        self.post_attention_layernorm = RMSNorm(dims.hidden_size, dims.rms_norm_eps, dtype)
        self.mlp = MLP(dims, dtype)

    def forward(self, op: OpBuilder, x: ir.Value, cache: Cache, positions: Positions) -> ir.Value:
        h = op.Add(x, self.self_attn(op, self.input_layernorm(op, x), cache, positions))
        return op.Add(h, self.mlp(op, self.post_attention_layernorm(op, h)))


class Base(Module):
    """The main model: `model.*` and `lm_head.*` as in Hugging Face checkpoints."""

    def __init__(self, dims: Dims, dtype: ir.DataType):
        super().__init__("")
        self.model = Trunk(dims, dtype)
        self.lm_head = None if dims.tied else Linear(dims.hidden_size, dims.vocab_size, dtype)

    def logits(self, op: OpBuilder, hidden_postnorm: ir.Value) -> ir.Value:
        if self.lm_head is None:
            return self.model.embed_tokens.as_linear(op, hidden_postnorm)
        return self.lm_head(op, hidden_postnorm)


class Trunk(Module):
    def __init__(self, dims: Dims, dtype: ir.DataType):
        super().__init__("model")
        self.embed_tokens = Embedding(dims.vocab_size, dims.hidden_size, dtype)
        self.layers = ModuleList([Block(dims, dtype) for _ in range(dims.num_layers)])
        self.norm = RMSNorm(dims.hidden_size, dims.rms_norm_eps, dtype)

    def forward(self, op: OpBuilder, tokens: ir.Value, caches: list[Cache], positions: Positions) -> ir.Value:
        """tokens [S] -> hidden_prenorm [S, d]."""
        hidden = self.embed_tokens(op, tokens)
        for layer, cache in zip(self.layers, caches, strict=True):
            hidden = layer(op, hidden, cache, positions)
        return hidden


class MTPHead(Module):
    """h'^k = M_k [RMSNorm_h(h^{k-1}) ; RMSNorm_e(Emb(x))], h^k = Block_k(h'^k) (docs/architecture.md)."""

    def __init__(self, dims: Dims, dtype: ir.DataType):
        super().__init__()
        self.hnorm = RMSNorm(dims.hidden_size, dims.rms_norm_eps, dtype)
        self.enorm = RMSNorm(dims.hidden_size, dims.rms_norm_eps, dtype)
        self.eh_proj = Linear(2 * dims.hidden_size, dims.hidden_size, dtype)
        self.block = Block(dims, dtype)

    def forward(self, op: OpBuilder, hidden: ir.Value, embedded: ir.Value, cache: Cache, positions: Positions) -> ir.Value:
        joined = op.Concat(self.hnorm(op, hidden), self.enorm(op, embedded), axis=-1)
        return self.block(op, self.eh_proj(op, joined), cache, positions)


class MTPHeads(Module):
    def __init__(self, dims: Dims, num_heads: int, dtype: ir.DataType):
        super().__init__("")
        self.heads = ModuleList([MTPHead(dims, dtype) for _ in range(num_heads)])
