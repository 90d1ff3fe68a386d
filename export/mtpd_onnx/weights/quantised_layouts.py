"""`plan`: which matrices are stored in integers, and how, decided before a graph is built.
Called by export/export.py and weights/parameters.py."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from mtpd_mlx.families.dims import Dims, Layer
from mtpd_mlx.families.shapes import LAYER
from mtpd_mlx.options.export import ExportOptions
from mtpd_onnx.graphs.builder import Spec
from mtpd_onnx.graphs.fused import Fused
from mtpd_onnx.graphs.modules import Base, Embedding, Linear
from mtpd_onnx.graphs.packed_modules import Packed
from mtpd_onnx.weights.names import checkpoint_name
from mtpd_onnx.weights.quantize import affine
from mtpd_onnx.weights.tensors import Tensors

# In an int4 folder these keep 8 bits where they are rounded here: every token depends on them alone, at both ends.
ENDS, END_BITS = ("model.embed_tokens", "lm_head"), 8
DRAFT_HEAD = "draft_head"
# By bits: the largest groups of which MatMulNBits with inputs of 8 bits gives a row the same bits alone and among others
# (onnxruntime 1.32, AVX-512). Larger ones are not made, so that verified texts are those of plain decoding; the groups of a
# matrix that is kept are cut, which changes no weight.
EXACT_GROUPS = {4: 32, 8: 64}
# With such products heads keep 8 bits: a window of several rows takes no longer than in 4, and more drafts are accepted.
HEAD_BITS = 8


@dataclass(frozen=True)
class Policy:
    """What `--precision int4 | int8` asks for. bits None: no integers at all."""

    bits: int | None = None
    group_size: int = ExportOptions.group_size
    int8_products: bool = False
    draft_bits: int | None = None  # `--draft-head-bits`
    end_bits: int = END_BITS

    def of(self, path: str) -> "Policy":
        """The one for a matrix of the graphs: drafts are verified, so their output head may be as coarse as it likes."""
        if path != DRAFT_HEAD or self.draft_bits is None:
            return self
        return replace(self, bits=self.draft_bits, end_bits=self.draft_bits)

    def wanted_bits(self, stem: str) -> int:
        assert self.bits is not None
        if self.int8_products and stem.startswith("heads."):
            return max(self.bits, HEAD_BITS)
        return max(self.bits, self.end_bits) if stem in ENDS else self.bits

    def keeps(self, source: Tensors, stem: str) -> bool:
        """MLX's integers are kept where they have no more bits than asked for; and all of them in a model that, by and large,
        has no more: layers that were given more bits were given them on purpose."""
        stored = source.quantised(stem)
        return stored is not None and (stored.bits <= self.wanted_bits(stem) or self._as_stored(source))

    def stays_float(self, source: Tensors, stem: str, inputs: int) -> bool:
        """MLX left it in floating point, or it does not divide into groups."""
        if self.keeps(source, stem):
            return False
        return (self._as_stored(source) and source.quantised(stem) is None) or inputs % self.group_size != 0

    def _as_stored(self, source: Tensors) -> bool:
        return self.bits is not None and source.default_bits is not None and source.default_bits <= self.bits


@dataclass(frozen=True)
class Part:
    """One checkpoint matrix inside a graph matrix."""

    source: Tensors
    stem: str
    rows: int


def matrices(spec: Spec) -> Iterator[tuple[str, int, int]]:
    """(path, outputs, inputs) of every matrix of the graphs."""
    flavour = Fused()
    for root in (Base(spec.dims, spec.dtype, flavour), spec.heads(flavour)):
        for path, module in root.named_modules():
            if isinstance(module, Linear | Embedding):
                assert module.weight.shape is not None
                outputs, inputs = (int(n) for n in module.weight.shape)  # type: ignore[arg-type]
                yield path, outputs, inputs


def parts_of(stem: str, outputs: int, spec: Spec, base: Tensors, heads: Tensors) -> list[Part]:
    """The checkpoint matrices that a graph matrix stacks: the one key map of the export."""
    dims = spec.dims
    if stem == DRAFT_HEAD:  # some or all rows of the output head
        return [Part(base, checkpoint_name("model.embed_tokens", dims, base) if dims.tied else "lm_head", dims.vocab_size)]
    source = heads if stem.startswith("heads.") else base
    path, _, last = stem.rpartition(".")
    own = dims.geometry(layer_of(stem, dims))
    q, kv = dims.num_heads * own.head_dim, own.num_kv_heads * own.head_dim
    stacked = {
        "qkv_proj": {"q_proj": q * (1 + dims.gated), "k_proj": kv} | ({"v_proj": kv} if own.own_values else {}),
        "gate_up_proj": dict.fromkeys(("gate_proj", "up_proj"), outputs // 2),
    }.get(last if not dims.fused else "")
    if last == "in_proj_all" and (kind := dims.recurrent) is not None:
        joined = {"in_proj_qkvz": kind.channels + kind.heads * kind.value, "in_proj_ba": 2 * kind.heads}
        stacked = {"in_proj_qkv": kind.channels, "in_proj_b": kind.heads, "in_proj_a": kind.heads}
        stacked["in_proj_z"] = kind.heads * kind.value
        stacked = joined if kind.kind == "joined_delta" else stacked
    if last == "gate_up_proj" and f"{checkpoint_name(stem, dims, source)}.weight" in source:
        stacked = None  # they are one matrix there, too
    rows_of = {stem: outputs} if stacked is None else {f"{path}.{name}": rows for name, rows in stacked.items()}
    return [Part(source, checkpoint_name(name, dims, source), rows) for name, rows in rows_of.items()]


def gates_last(dims: Dims, stem: str) -> list[int]:
    """q_proj holds each head's query and its gate; of q_proj, k_proj and v_proj in one, the rows with all gates behind."""
    own = dims.geometry(layer_of(stem, dims))
    rows = np.arange(2 * dims.num_heads * own.head_dim).reshape(dims.num_heads, 2, own.head_dim)
    others = np.arange(rows.size, rows.size + (1 + own.own_values) * own.num_kv_heads * own.head_dim)
    return [*rows[:, 0].ravel().tolist(), *others.tolist(), *rows[:, 1].ravel().tolist()]


def heads_together(dims: Dims) -> list[int] | None:
    """The rows of Qwen3-Next's in_proj_qkvz and in_proj_ba, one behind the other and by key heads, in another order: q of all
    heads, then k, v, b, a and z. None where they lie so."""
    kind = dims.recurrent
    if kind is None or kind.kind != "joined_delta":
        return None
    each = kind.heads // kind.groups
    ends = np.cumsum([kind.key, kind.key, each * kind.value])
    large = np.arange(kind.channels + kind.heads * kind.value).reshape(kind.groups, -1)
    small = large.size + np.arange(2 * kind.heads).reshape(kind.groups, -1)
    q, k, v, z = np.split(large, ends, axis=1)
    b, a = np.split(small, 2, axis=1)
    return [row for part in (q, k, v, b, a, z) for row in part.ravel().tolist()]


def layer_of(stem: str, dims: Dims) -> Layer:
    """The layer that a matrix of the graphs belongs to."""
    base = LAYER.match(f"{stem}.")
    return dims.layers[int(base[1])] if base else dims.head_layer


def plan(spec: Spec, policy: Policy, base: Tensors, heads: Tensors) -> dict[str, Packed]:
    """path -> layout of the matrices that are stored in integers; the others stay in floating point."""
    found = {}
    for stem, outputs, inputs in matrices(spec):
        own = policy.of(stem)
        if own.bits is None:
            continue
        layout = _layout(parts_of(stem, outputs, spec, base, heads), inputs, spec.dtype, own)
        if layout is not None:
            found[stem] = layout
    return found


def _layout(parts: list[Part], inputs: int, dtype: ir.DataType, policy: Policy) -> Packed | None:
    """Parts of different bits and group sizes are stacked in the most bits and the smallest groups, which holds all of them
    exactly; one part in floating point keeps the whole stack there."""
    if any(policy.stays_float(p.source, p.stem, inputs) for p in parts):
        return None
    kept = [(p, s) for p in parts if policy.keeps(p.source, p.stem) and (s := p.source.quantised(p.stem))]
    rounded = [p for p in parts if not policy.keeps(p.source, p.stem)]
    bits = max([4 if s.bits <= 4 else 8 for _, s in kept] + [policy.wanted_bits(p.stem) for p in rounded])
    group_size = min([s.group_size for _, s in kept] + [policy.group_size for _ in rounded])
    if policy.int8_products:
        group_size = min(group_size, EXACT_GROUPS[bits])
    residual = any(affine(*p.source.scales_and_biases(p.stem), bits)[1].any() for p, _ in kept)
    # onnxruntime has no float kernel for 8 bits on CPUs: it would unpack the matrix in every run, 30 times slower.
    unpacked = bits == 8 and dtype == ir.DataType.FLOAT and not policy.int8_products
    return Packed(bits, group_size, residual, unpacked, policy.int8_products)
