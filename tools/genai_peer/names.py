"""`source_of`: the Hugging Face weights that make each initialiser of a graph of onnxruntime-genai's builder.
Called by genai_peer/fill.py and skeleton.py."""

import re
from collections.abc import Container
from dataclasses import dataclass

NORMS = {
    "input_layernorm.weight": "input_layernorm.weight",
    "post_attention_layernorm.weight": "post_attention_layernorm.weight",
    "attn.q_norm.layernorm.weight": "self_attn.q_norm.weight",
    "attn.k_norm.layernorm.weight": "self_attn.k_norm.weight",
}
PROJECTION = re.compile(r"(attn|mlp)\.(\w+)_proj\.(MatMul\.weight|Add\.bias)")
PARTS = {"qkv": ("q", "k", "v"), "gate_up": ("gate", "up")}


@dataclass(frozen=True)
class Source:
    """The concatenation of `names` along their first axis, transposed where they are matrices of a MatMul."""

    names: tuple[str, ...]
    transposed: bool = False


def source_of(initializer: str, weights: Container[str]) -> Source | None:
    """None where no weight makes it (rotary tables, constants). `weights`: the names that the folder has."""
    if initializer == "model.embed_tokens.weight":
        return Source((initializer,))
    if initializer == "lm_head.MatMul.weight":
        return Source(("lm_head.weight" if "lm_head.weight" in weights else "model.embed_tokens.weight",), transposed=True)
    match = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", initializer)
    if match is None:
        return None
    if match[2] == "final_norm_layernorm.weight":
        return Source(("model.norm.weight",))
    layer = f"model.layers.{match[1]}"
    if match[2] in NORMS:
        return Source((f"{layer}.{NORMS[match[2]]}",))
    if projection := PROJECTION.fullmatch(match[2]):
        module, which, kind = projection.groups()
        module = "self_attn" if module == "attn" else module
        kind = kind.rpartition(".")[2]
        names = tuple(f"{layer}.{module}.{part}_proj.{kind}" for part in PARTS.get(which, (which,)))
        return Source(names, transposed=kind == "weight")
    return None
