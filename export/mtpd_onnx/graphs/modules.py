"""`Block`, `Attention`, `MLP`, ...: torch-shaped ONNX modules of a decoder and its MTP heads.
Called by graphs/builder.py and the graphs. Shapes and equations: docs/architecture.md.

Parameter names follow the Hugging Face paths, except that q/k/v and gate/up are packed (`qkv_proj`, `gate_up_proj`;
weights/parameters.py says what each parameter is made of). Matrices are stored [out, in]. How an operation is spelt is the
flavour's business (graphs/flavours.py). A block returns the two terms of its residual sum, so that the next norm can fuse the
addition.
"""

from collections.abc import Sequence

import onnx_ir as ir
from onnxscript import OpBuilder
from onnxscript.nn import Module, ModuleList, Parameter

from mtpd_mlx.families.dims import Layer
from mtpd_onnx.dims import Dims
from mtpd_onnx.graphs.basics import Embedding as Embedding  # re-exported
from mtpd_onnx.graphs.basics import HeadNorm, RMSNorm, Sum
from mtpd_onnx.graphs.basics import Linear as Linear
from mtpd_onnx.graphs.basics import scaled as scaled
from mtpd_onnx.graphs.flavours import Cache, Flavour, Kept, Positions, QKNorms
from mtpd_onnx.graphs.mixtures import MLP, MoE
from mtpd_onnx.graphs.recurrent import DeltaNet, Mamba, ShortConv

# What a block calls a layer that is no attention.
BRANCHES = {"conv": "conv", "delta": "linear_attn", "joined_delta": "linear_attn", "mamba": "mamba"}


class Attention(Module):
    """Attention of one layer over its cache: q, k and v in one matrix [q + 2 kv, d], or [q + kv, d] if values are the keys."""

    def __init__(self, dims: Dims, layer: Layer, dtype: ir.DataType, flavour: Flavour):
        super().__init__()
        self.own_values, dims = dims.geometry(layer).own_values, dims.as_if_all(layer)
        q, kv = dims.num_heads * dims.head_dim, dims.num_kv_heads * dims.head_dim
        self.dims, self.layer, self.flavour = dims, layer, flavour
        self.sizes = [q + (1 + self.own_values) * kv] + [q] * dims.gated  # gates lie behind
        self.qkv_proj = Linear(dims.hidden_size, sum(self.sizes), dtype, flavour, dims.qkv_bias)
        self.o_proj = Linear(q, dims.hidden_size, dtype, flavour, dims.o_bias)
        if dims.qk_norm:
            whole = dims.qk_norm == "all"
            self.q_norm = HeadNorm(q if whole else dims.head_dim, dtype)
            self.k_norm = HeadNorm(kv if whole else dims.head_dim, dtype)
        self.sinks = Parameter([dims.num_heads], dtype) if dims.sinks else None

    def forward(self, op: OpBuilder, x: ir.Value, cache: Cache, positions: Positions) -> ir.Value:
        packed = self.qkv_proj(op, x)
        if self.dims.gated:
            packed, gate = op.Split(packed, self.sizes, axis=-1, _outputs=2)
        if self.dims.value_norm:
            packed = self._with_values(op, packed)
        norms = QKNorms(self.q_norm(op), self.k_norm(op)) if self.dims.qk_norm else None
        out = self.flavour.attention(op, self.dims, self.layer, packed, norms, cache, positions, self.sinks)
        return self.o_proj(op, op.Mul(out, op.Sigmoid(gate)) if self.dims.gated else out)

    def _with_values(self, op: OpBuilder, packed: ir.Value) -> ir.Value:
        """[.., q + 2 kv]: values normalised; they may be the keys."""
        q, kv = self.dims.num_heads * self.dims.head_dim, self.dims.num_kv_heads * self.dims.head_dim
        parts = op.Split(packed, [q, kv] + [kv] * self.own_values, axis=-1, _outputs=2 + self.own_values)
        joined = op.Concat(*parts[:2], self.flavour.value_norm(op, parts[-1], self.dims), axis=-1)
        joined.dtype = packed.dtype
        joined.shape = None if packed.shape is None else ir.Shape([*packed.shape[:-1], q + 2 * kv])
        return joined


class Block(Module):
    """A decoder block; `norms` of the family: before the branches ("pre"), after them ("post"), or "both"."""

    def __init__(self, dims: Dims, layer: Layer, dtype: ir.DataType, flavour: Flavour):
        super().__init__()
        self.norms, self.residual_scale = dims.norms, dims.residual_scale

        def norm() -> RMSNorm:
            return RMSNorm(dims.hidden_size, dims.rms_norm_eps, dtype, flavour)

        if dims.norms != "post":
            self.input_layernorm = norm()
        self.post_attention_layernorm = norm()
        if dims.norms == "both":
            self.pre_feedforward_layernorm = norm()
        if dims.norms != "pre":
            self.post_feedforward_layernorm = norm()
        self.branch = BRANCHES.get(layer.mixer, "self_attn")
        if layer.mixer == "conv":
            self.conv = ShortConv(dims, dtype, flavour)
        elif self.branch == "linear_attn":
            self.linear_attn = DeltaNet(dims, dtype, flavour)
        elif self.branch == "mamba":
            self.mamba = Mamba(dims, dtype, flavour)
        else:
            self.self_attn = Attention(dims, layer, dtype, flavour)
        self.mixture = layer.experts and dims.experts is not None and dims.experts.path
        setattr(self, self.mixture or "mlp", (MoE if self.mixture else MLP)(dims, dtype, flavour))
        self.both = bool(self.mixture) and dims.experts is not None and dims.experts.beside
        if self.both:
            self.mlp = MLP(dims, dtype, flavour)
        self.layer_scalar = Parameter([1], dtype) if dims.layer_scale else None

    def forward(self, op: OpBuilder, x: ir.Value, added: ir.Value | None, cache: Kept, positions: Positions) -> Sum:
        """Input x (+ added), output the two terms of the residual stream."""
        mlp, branch = self.feed_forward, getattr(self, self.branch)
        if self.norms == "post":
            x = x if added is None else op.Add(x, added)
            x = op.Add(x, self.post_attention_layernorm(op, branch(op, x, cache, positions)))
            return x, self.post_feedforward_layernorm(op, mlp(op, x))
        x, normed = (x, self.input_layernorm(op, x)) if added is None else self.input_layernorm(op, x, added)
        attended = branch(op, normed, cache, positions)
        if self.norms == "both":
            x, normed = self.pre_feedforward_layernorm(op, x, self.post_attention_layernorm(op, attended))
            y = self.post_feedforward_layernorm(op, mlp(op, normed))
            return (x, y) if self.layer_scalar is None else (op.Mul(x, self.layer_scalar), op.Mul(y, self.layer_scalar))
        x, normed = self.post_attention_layernorm(op, x, scaled(op, attended, self.residual_scale))
        return x, scaled(op, mlp(op, normed), self.residual_scale)

    def feed_forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        """The MLP or the mixture; in Granite 4 the sum of both."""
        y = getattr(self, self.mixture or "mlp")(op, x)
        return op.Add(y, self.mlp(op, x)) if self.both else y


class Trunk(Module):
    """Embedding, all blocks and the final norm; names of parameters begin with `model`."""

    def __init__(self, dims: Dims, dtype: ir.DataType, flavour: Flavour):
        super().__init__("model")
        self.embed_tokens = Embedding(dims.vocab_size, dims.hidden_size, dtype, flavour, dims.embedding_scale)
        self.layers = ModuleList([Block(dims, layer, dtype, flavour) for layer in dims.layers])
        self.norm = RMSNorm(dims.hidden_size, dims.rms_norm_eps, dtype, flavour)

    def forward(self, op: OpBuilder, tokens: ir.Value, caches: Sequence[Kept], positions: Positions) -> Sum:
        """Token ids -> (hidden_prenorm, hidden_postnorm)."""
        x, added = self.embed_tokens(op, tokens), None
        for layer, cache in zip(self.layers, caches, strict=True):
            x, added = layer(op, x, added, cache, positions)
        return self.norm(op, x, added)


class MTPHead(Module):
    """h'^k = M_k [RMSNorm_h(h^{k-1}) ; RMSNorm_e(Emb(x))], h^k = Block_k(h'^k)."""

    def __init__(self, dims: Dims, dtype: ir.DataType, flavour: Flavour, own_norm: bool = False):
        super().__init__()
        self.hnorm = RMSNorm(dims.hidden_size, dims.rms_norm_eps, dtype, flavour)
        self.enorm = RMSNorm(dims.hidden_size, dims.rms_norm_eps, dtype, flavour)
        self.eh_proj = Linear(2 * dims.hidden_size, dims.hidden_size, dtype, flavour)
        self.block = Block(dims, dims.head_layer, dtype, flavour)
        self.post_norm = RMSNorm(dims.hidden_size, dims.rms_norm_eps, dtype, flavour) if own_norm else None

    def final_norm(self, base: "Base") -> RMSNorm:
        """The base's own norm, or the head's where it was imported with one."""
        return base.model.norm if self.post_norm is None else self.post_norm

    def forward(self, op: OpBuilder, hidden: ir.Value, embedded: ir.Value, cache: Cache, positions: Positions) -> Sum:
        joined = op.Concat(self.hnorm(op, hidden), self.enorm(op, embedded), axis=-1)
        return self.block(op, self.eh_proj(op, joined), None, cache, positions)


class Base(Module):
    """The main model: `model.*` and `lm_head.*` as in Hugging Face checkpoints."""

    def __init__(self, dims: Dims, dtype: ir.DataType, flavour: Flavour):
        super().__init__("")
        self.model = Trunk(dims, dtype, flavour)
        self.lm_head = None if dims.tied else Linear(dims.hidden_size, dims.vocab_size, dtype, flavour)
        self.scale, self.softcap = dims.logits_scale, dims.logits_softcap

    def logits(self, op: OpBuilder, hidden_postnorm: ir.Value) -> ir.Value:
        if self.lm_head is not None:
            return self.finish(op, self.lm_head(op, hidden_postnorm))
        return self.finish(op, self.model.embed_tokens(op, hidden_postnorm, transposed=True))

    def finish(self, op: OpBuilder, logits: ir.Value) -> ir.Value:
        """What a family does to its logits, the draft head's included."""
        logits = scaled(op, logits, self.scale)
        return logits if self.softcap is None else op.Mul(op.Tanh(op.Div(logits, self.softcap)), self.softcap)


class MTPHeads(Module):
    """`draft_head.weight` [D, d]: rows of the output head, where drafts have one of their own (D = draft_vocab, or all V)."""

    def __init__(
        self,
        dims: Dims,
        num_heads: int,
        dtype: ir.DataType,
        flavour: Flavour,
        draft_vocab: int | None = None,
        post_norms: bool = False,
    ):
        super().__init__("")
        self.heads = ModuleList([MTPHead(dims, dtype, flavour, post_norms) for _ in range(num_heads)])
        self.draft_head = None if draft_vocab is None else Linear(dims.hidden_size, draft_vocab, dtype, flavour)
