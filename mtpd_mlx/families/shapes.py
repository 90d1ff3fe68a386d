"""`expected`, `contradiction`: tensors that config.json announces, against those that the weights hold. Nothing is read.
Called by families/stored.py, the exporter and checkpoints."""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mtpd_mlx.families.dims import Dims, Experts, Layer
from mtpd_mlx.families.hybrid_shapes import Named, recurrence
from mtpd_mlx.families.table import FAMILIES, Names

NORMS = {
    "pre": ("input_layernorm", "post_attention_layernorm"),
    "post": ("post_attention_layernorm", "post_feedforward_layernorm"),
    "both": ("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"),
}
BLOCKS, SCALES = "_blocks", "_scales"  # of MXFP4 as OpenAI stores it: 32 numbers in 16 bytes, and the exponent they share
LAYER = re.compile(r"(?:model|backbone)\.layers\.(\d+)\.")


def contradiction(table: Mapping[str, Any], dims: Dims) -> str | None:
    """The first tensor of a base that is missing, of another shape than config.json says, or of which it does not speak; None
    where all fit."""
    wanted_shapes = dict(expected(dims, table))
    for name, wanted in wanted_shapes.items():
        if name not in table:
            return f"weights: missing key {name!r} (config.json says shape {wanted})"
        if (got := plain_shape(name, table, dims.quantization or {})) != wanted:
            return f"weights: {name}: got shape {got}, config.json says {wanted}"
    for name in table:
        if name.endswith((".weight", ".bias")) and name not in wanted_shapes and _inside(name, dims):
            return f"weights: unexpected key {name!r} (config.json speaks of no such tensor)"
    return None


def _inside(name: str, dims: Dims) -> bool:
    """Whether a tensor is one of the base's own: not of MTP heads, which may be further layers."""
    if layer := LAYER.match(name):
        return int(layer[1]) < dims.num_layers
    return name.startswith(("lm_head.", *(ours.removesuffix("weight") for ours in (embedding(dims), final_norm(dims)))))


def plain_shape(name: str, table: Mapping[str, Any], quantization: Mapping[str, Any]) -> list[int]:
    """Of a matrix in MLX's integers the shape that it stands for."""
    shape, stem = list(table[name]["shape"]), name.removesuffix(".weight")
    if name.endswith(".weight") and f"{stem}.scales" in table and shape:
        groups, own = table[f"{stem}.scales"]["shape"], quantization.get(stem)
        settings = own if isinstance(own, dict) else quantization
        size = settings.get("group_size", 64)
        return [*shape[:-1], groups[-1] * size] if groups and type(size) is int else shape
    return shape


def expected(dims: Dims, table: Mapping[str, Any]) -> Named:
    """name, shape of every tensor of the base. `table` only says how mixtures and convolutions are stored."""
    names = names_of(dims)
    yield embedding(dims), [dims.vocab_size, dims.hidden_size]
    yield final_norm(dims), [dims.hidden_size]
    if not dims.tied:
        yield "lm_head.weight", [dims.vocab_size, dims.hidden_size]
    for i, layer in enumerate(dims.layers):
        yield from block(dims, layer, f"{names.inner}.layers.{i}.", table)


def block(dims: Dims, layer: Layer, prefix: str = "", table: Mapping[str, Any] | None = None) -> Named:
    """name, shape of every tensor of one block."""
    names, table = names_of(dims), {} if table is None else table
    if dims.paired:
        yield from _branch(dims, layer, prefix, table)
        return
    for norm in names.norms or NORMS[dims.norms]:
        yield f"{prefix}{norm}.weight", [dims.hidden_size]
    if layer.mixer != "attention":
        yield from recurrence(prefix, dims, table)
    else:
        for name, shape in _attention(dims, layer):
            yield f"{prefix}self_attn.{name}", shape
    if dims.layer_scale:
        yield f"{prefix}layer_scalar", [1]
    mixture = dims.experts if layer.experts else None
    if mixture is not None:
        path = f"{mixture.path}." if mixture.path else ""
        yield from _mixture(f"{prefix}{path}", dims.hidden_size, mixture, table)
    if mixture is None or mixture.parallel or mixture.beside:
        if names.joined_mlp is not None and f"{prefix}{names.mlp}.{names.gate}.weight" not in table:
            path, inputs, output = names.joined_mlp
            yield f"{prefix}{path}.{inputs}.weight", [2 * dims.intermediate_size, dims.hidden_size]
            yield f"{prefix}{path}.{output}.weight", [dims.hidden_size, dims.intermediate_size]
            return
        stacked = f"{prefix}{names.mlp}.gate_proj.weight" in table  # as mlx-lm names them
        for name, shape in _mlp(dims, replace(names, gate="gate_proj", up="up_proj", down="down_proj") if stacked else names):
            yield f"{prefix}{names.mlp}.{name}", shape


def _branch(dims: Dims, layer: Layer, prefix: str, table: Mapping[str, Any]) -> Named:
    """A block of one branch: a norm and attention, a recurrence or an MLP of two matrices. A head's block is two of them."""
    if layer.mixer == "pair":
        yield from _branch(dims, replace(layer, mixer="attention", experts=False), f"{prefix}attention.", table)
        yield from _branch(dims, replace(layer, mixer="mlp"), f"{prefix}mlp.", table)
        return
    yield f"{prefix}norm.weight", [dims.hidden_size]
    if layer.experts and dims.experts is not None:
        yield from _mixture(f"{prefix}{dims.experts.path}.", dims.hidden_size, dims.experts, table)
    elif layer.mixer == "mlp":
        for name, shape in _mlp(dims, names_of(dims)):
            if not name.startswith("gate_proj"):
                yield f"{prefix}mixer.{name}", shape
    elif layer.mixer == "attention":
        for name, shape in _attention(dims, layer):
            yield f"{prefix}mixer.{name}", shape
    else:
        yield from recurrence(prefix, dims, table)


def names_of(dims: Dims) -> Names:
    return FAMILIES[dims.model_type].names


def final_norm(dims: Dims) -> str:
    return f"{names_of(dims).inner}.{names_of(dims).norm}.weight"


def embedding(dims: Dims) -> str:
    return f"{names_of(dims).inner}.{names_of(dims).embedding}.weight"


def _attention(dims: Dims, layer: Layer) -> Named:
    own, names = dims.geometry(layer), names_of(dims)
    d, q, kv = dims.hidden_size, dims.num_heads * own.head_dim, own.num_kv_heads * own.head_dim
    projections = {"qkv_proj": q + 2 * kv} if dims.fused else {"q_proj": q * (1 + dims.gated), "k_proj": kv, "v_proj": kv}
    if not own.own_values:
        del projections["v_proj"]
    for name, rows in projections.items():
        yield f"{name}.weight", [rows, d]
        if dims.qkv_bias:
            yield f"{name}.bias", [rows]
    yield f"{names.output}.weight", [d, q]
    if dims.o_bias:
        yield f"{names.output}.bias", [d]
    if dims.qk_norm is not None:
        yield f"{names.query_norm}.weight", [own.head_dim if dims.qk_norm == "head" else q]
        yield f"{names.key_norm}.weight", [own.head_dim if dims.qk_norm == "head" else kv]
    if dims.sinks:
        yield "sinks", [dims.num_heads]


def _mlp(dims: Dims, names: Names) -> Named:
    d, size = dims.hidden_size, dims.intermediate_size
    matrices = {"gate_up_proj": (2 * size, d)} if dims.fused else {names.gate: (size, d), names.up: (size, d)}
    for name, (rows, columns) in (matrices | {names.down: (d, size)}).items():
        yield f"{name}.weight", [rows, columns]
        if dims.mlp_bias:
            yield f"{name}.bias", [rows]


def _mixture(prefix: str, d: int, experts: Experts, table: Mapping[str, Any]) -> Named:
    """Experts one by one or fused (Hugging Face), or stacked (mlx-lm)."""
    yield f"{prefix}{experts.gate}.weight", [experts.count, d]
    if experts.bias:
        yield f"{prefix}{experts.gate}.bias", [experts.count]
    if experts.sigmoid:
        yield f"{prefix}{experts.correction or f'{experts.gate}.e_score_correction_bias'}", [experts.count]
    if experts.shared:
        for name in ("gate_proj", "up_proj")[len(experts.names) == 2 :]:
            yield f"{prefix}{experts.shared_name}.{name}.weight", [experts.shared, d]
        yield f"{prefix}{experts.shared_name}.down_proj.weight", [d, experts.shared]
        if experts.shared_gate:
            yield f"{prefix}{experts.shared_name}_gate.weight", [1, d]
    if experts.parallel:
        yield f"{prefix}router.scale", [d]
        yield f"{prefix}router.per_expert_scale", [experts.count]
        for norm in ("post_feedforward_layernorm_1", "post_feedforward_layernorm_2", "pre_feedforward_layernorm_2"):
            yield f"{prefix}{norm}.weight", [d]
    if experts.latent is not None:
        yield f"{prefix}fc1_latent_proj.weight", [experts.latent, d]
        yield f"{prefix}fc2_latent_proj.weight", [d, experts.latent]
        d = experts.latent
    shapes = [*[[experts.size, d]] * (len(experts.names) - 1), [d, experts.size]]
    if f"{prefix}{experts.stacked}.{experts.parts[0]}.weight" in table:
        for name, shape in zip(experts.parts, shapes, strict=True):
            yield f"{prefix}{experts.stacked}.{name}.weight", [experts.count, *shape]
            if experts.bias:
                yield f"{prefix}{experts.stacked}.{name}.bias", [experts.count, shape[0]]
        return
    if experts.fused or f"{prefix}experts.gate_up_proj" in table:
        yield from _fused_mixture(prefix, d, experts, table)
        return
    for e in range(experts.count):
        for name, shape in zip(experts.names, shapes, strict=True):
            yield f"{prefix}experts.{e}.{name}.weight", shape


def _fused_mixture(prefix: str, d: int, experts: Experts, table: Mapping[str, Any]) -> Named:
    """gate and up in turn. Floating-point ones are stored [E, in, out], MXFP4 ones [E, out, in] in blocks of 32."""
    for name, (rows, columns) in zip(experts.joined, ((2 * experts.size, d), (d, experts.size)), strict=True):
        if f"{prefix}{name}{BLOCKS}" in table:
            yield f"{prefix}{name}{BLOCKS}", [experts.count, rows, columns // 32, 16]
            yield f"{prefix}{name}{SCALES}", [experts.count, rows, columns // 32]
        else:  # gpt-oss and Gemma 4 differ
            yield f"{prefix}{name}", [experts.count, *((columns, rows) if experts.bias else (rows, columns))]
        if experts.bias:
            yield f"{prefix}{name}_bias", [experts.count, rows]
