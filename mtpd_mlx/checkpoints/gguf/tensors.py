"""`plan(source, dims, ...)`: the tensors that a safetensors file gets from a GGUF file, and how each is made.
Called by gguf/write.py.

Contents are read and converted one tensor at a time, when the file is written.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from mtpd_mlx.checkpoints.gguf.quants import EXACT, GROUP, affine, as_raw, floats, packed
from mtpd_mlx.checkpoints.gguf.reader import Gguf, Tensor
from mtpd_mlx.checkpoints.gguf.rope import FACTORS
from mtpd_mlx.families.dims import Dims
from mtpd_mlx.files.safetensors import ITEM_BYTES

EMBEDDING = "model.embed_tokens"
ENDS = {"token_embd": EMBEDDING, "output_norm": "model.norm", "output": "lm_head"}
NORMS = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
NORMS_OF_BOTH = {
    "attn_norm": "input_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
QK_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
ATTENTION = {f"attn_{short}": f"self_attn.{long}_proj" for short, long in (("q", "q"), ("k", "k"), ("v", "v"), ("output", "o"))}
MLP = {f"ffn_{name}": f"mlp.{name}_proj" for name in ("gate", "up", "down")}


@dataclass(frozen=True)
class Slot:
    """Where a tensor goes: `name` without .weight or .bias in Hugging Face layout. heads: GGUF pairs its rows by this many
    heads (0: it does not). offset: GGUF stores the weight plus this."""

    name: str
    shape: tuple[int, ...]
    heads: int = 0
    offset: float = 0.0


@dataclass(frozen=True)
class Entry:
    """A tensor of the safetensors file: `make` computes its bits."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    make: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * ITEM_BYTES[self.dtype]


@dataclass(frozen=True)
class Plan:
    """dtype: of what is not kept as integers; exact, dense: how many tensors of each GGML type are kept, are dequantised."""

    entries: list[Entry]
    quantization: dict[str, Any] | None
    dtype: str
    exact: Counter[str]
    dense: Counter[str]
    parameters: int


def slots(dims: Dims, permuted: bool) -> dict[str, Slot]:
    """GGUF's name -> where it goes, for each tensor that a model of `dims` has. permuted: llama's order of q and k."""
    width, wide, offset = dims.hidden_size, dims.intermediate_size, dims.norm_offset
    q, kv = dims.num_heads * dims.head_dim, dims.num_kv_heads * dims.head_dim
    found = {"token_embd.weight": Slot(f"{EMBEDDING}.weight", (dims.vocab_size, width))}
    found["output_norm.weight"] = Slot("model.norm.weight", (width,), offset=offset)
    if not dims.tied:
        found["output.weight"] = Slot("lm_head.weight", (dims.vocab_size, width))
    matrices = {"attn_q": (q, width), "attn_k": (kv, width), "attn_v": (kv, width), "attn_output": (width, q)}
    matrices |= {"ffn_gate": (wide, width), "ffn_up": (wide, width), "ffn_down": (width, wide)}
    norms = {name: (long, width) for name, long in (NORMS_OF_BOTH if dims.norms == "both" else NORMS).items()}
    norms |= {name: (long, dims.head_dim) for name, long in QK_NORMS.items()} if dims.qk_norm else {}
    paired = {"attn_q": dims.num_heads, "attn_k": dims.num_kv_heads} if permuted else {}
    biased = {"attn_q": dims.qkv_bias, "attn_k": dims.qkv_bias, "attn_v": dims.qkv_bias, "attn_output": dims.o_bias}
    biased |= dict.fromkeys(MLP, dims.mlp_bias)
    for i in range(dims.num_layers):
        here = f"model.layers.{i}."
        for name, shape in matrices.items():
            long, heads = here + (ATTENTION | MLP)[name], paired.get(name, 0)
            found[f"blk.{i}.{name}.weight"] = Slot(f"{long}.weight", shape, heads)
            if biased[name]:
                found[f"blk.{i}.{name}.bias"] = Slot(f"{long}.bias", shape[:1], heads)
        for name, (long, size) in norms.items():
            found[f"blk.{i}.{name}.weight"] = Slot(f"{here}{long}.weight", (size,), offset=offset)
    return found


def plan(source: Gguf, dims: Dims, permuted: bool, dequantize: bool, wide: bool) -> Plan:
    """`dequantize`: keep no integers. `wide`: the family's values do not fit float16. ValueError names a tensor that is
    missing, unknown or of another shape."""
    wanted = slots(dims, permuted)
    _check(source, wanted)
    kept = set() if dequantize else kept_exact(source, wanted, wide)
    dtype = dense_dtype(source, wanted, kept, wide)
    entries: list[Entry] = []
    for name, slot in wanted.items():
        tensor = source.tensors[name]
        entries += _exact(tensor, slot, "F32" if wide else "F16") if name in kept else [_dense(tensor, slot, dtype)]
    kinds = {name: source.tensors[name].kind for name in wanted}
    bits = {wanted[name].name.removesuffix(".weight"): EXACT[kinds[name]][2] for name in kept}
    return Plan(
        entries,
        _quantization(bits),
        dtype,
        Counter(kinds[name] for name in kept),
        Counter(kinds[name] for name in wanted if name not in kept),
        sum(int(np.prod(slot.shape, dtype=np.int64)) for slot in wanted.values()),
    )


def kept_exact(source: Gguf, wanted: dict[str, Slot], wide: bool) -> set[str]:
    """The matrices that keep their integers: all that can. Where float16 is too small, all else is float32 beside them
    (dense_dtype); so none, where bfloat16 for everything takes less."""
    weights = {name: int(np.prod(slot.shape, dtype=np.int64)) for name, slot in wanted.items() if len(slot.shape) == 2}
    kept = {name for name in weights if source.tensors[name].kind in EXACT}
    scales = 2 * ITEM_BYTES["F32"] / GROUP
    held = sum(n * (EXACT[source.tensors[name].kind][2] / 8 + scales if name in kept else 4) for name, n in weights.items())
    return set() if wide and held > ITEM_BYTES["BF16"] * sum(weights.values()) else kept


def dense_dtype(source: Gguf, wanted: dict[str, Slot], kept: set[str], wide: bool) -> str:
    """The type of what is dequantised: float32 if all matrices are float32 anyway. Where float16 is too small for the family's
    values: bfloat16, or beside scales in float32 (which bfloat16 would round) float32."""
    matrices = {source.tensors[name].kind for name, slot in wanted.items() if len(slot.shape) == 2}
    if matrices == {"F32"} or (wide and kept):
        return "F32"
    return "BF16" if wide or matrices == {"BF16"} else "F16"


def _check(source: Gguf, wanted: dict[str, Slot]) -> None:
    for name in sorted(wanted.keys() - source.tensors.keys()):
        raise ValueError(f"{source.file}: missing tensor {name!r} (expected shape {wanted[name].shape})")
    for name in sorted(source.tensors.keys() - wanted.keys() - {FACTORS}):
        raise ValueError(f"{source.file}: unknown tensor {name!r}")
    for name, slot in wanted.items():
        if (got := source.tensors[name].shape) != slot.shape:
            raise ValueError(f"{source.file}: {name!r}: got shape {got}, expected {slot.shape}")


def _quantization(bits: dict[str, int]) -> dict[str, Any] | None:
    """As mlx-lm writes it: what most matrices have, and an entry for each other one that is quantised."""
    if not bits:
        return None
    usual = Counter(bits.values()).most_common(1)[0][0]
    others = {name: {"group_size": GROUP, "bits": own} for name, own in bits.items() if own != usual}
    return {"group_size": GROUP, "bits": usual, **others}


def row_order(rows: int, heads: int) -> np.ndarray:
    """The rows of a q or k projection as Hugging Face has them: GGUF interleaves the two halves of each of llama's heads."""
    return np.arange(rows).reshape(heads, -1, 2).swapaxes(1, 2).reshape(-1)


def _dense(tensor: Tensor, slot: Slot, dtype: str) -> Entry:
    def make() -> np.ndarray:
        values = floats(tensor)
        if slot.heads:
            values = values[row_order(len(values), slot.heads)]
        try:
            return as_raw(values - np.float32(slot.offset) if slot.offset else values, dtype)
        except ValueError as error:
            raise ValueError(f"{tensor.name!r}: {error}") from None

    return Entry(slot.name, dtype, slot.shape, make)


def _exact(tensor: Tensor, slot: Slot, dtype: str) -> Iterator[Entry]:
    """The three tensors of a quantised matrix; `dtype`: of scales and biases."""
    rows, columns = slot.shape
    stem, bits = slot.name.removesuffix(".weight"), EXACT[tensor.kind][2]

    def part(take: Callable[[Any], np.ndarray]) -> Callable[[], np.ndarray]:
        def make() -> np.ndarray:
            found = affine(tensor)
            return take(found.ordered(row_order(rows, slot.heads)) if slot.heads else found)

        return make

    groups = (rows, columns // GROUP)
    yield Entry(slot.name, "U32", (rows, columns * bits // 32), part(lambda found: packed(found.q, bits)))
    yield Entry(f"{stem}.scales", dtype, groups, part(lambda found: as_raw(found.scales, dtype)))
    yield Entry(f"{stem}.biases", dtype, groups, part(lambda found: as_raw(found.biases, dtype)))
