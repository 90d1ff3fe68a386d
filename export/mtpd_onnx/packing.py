"""Which checkpoint tensors make up each graph parameter: the one key map of the export."""

import numpy as np

from mtpd_onnx.graphs import Spec
from mtpd_onnx.weights import Tensors


def parameter_value(name: str, shape: tuple[int, ...], spec: Spec, base: Tensors, heads: Tensors) -> np.ndarray:
    """float32 value of the graph parameter `name`; q/k/v and gate/up are stacked along the output axis."""
    dims = spec.dims
    if name == "draft_head.weight":
        output = "model.embed_tokens.weight" if dims.tied else "lm_head.weight"
        return base.get(output, (dims.vocab_size, shape[1]))[list(spec.draft_tokens or ())]
    source = heads if name.startswith("heads.") else base
    q, kv = dims.num_heads * dims.head_dim, dims.num_kv_heads * dims.head_dim
    for packed, parts in (
        ("qkv_proj", {"q_proj": q, "k_proj": kv, "v_proj": kv}),
        ("gate_up_proj", {"gate_proj": dims.intermediate_size, "up_proj": dims.intermediate_size}),
    ):
        if f".{packed}." in name:
            rows = [source.get(name.replace(packed, part), (n, *shape[1:])) for part, n in parts.items()]
            return np.concatenate(rows)
    return source.get(name, shape)
