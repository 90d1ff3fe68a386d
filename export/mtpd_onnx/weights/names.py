"""`checkpoint_name`: names of graph parameters in the checkpoints of a family (families/table.py).
Called by weights/parameters.py."""

import re

from mtpd_mlx.families.dims import Dims
from mtpd_mlx.families.shapes import NORMS, embedding, final_norm, names_of
from mtpd_onnx.weights.tensors import Tensors

BLOCK = re.compile(r"(model\.layers\.\d+|heads\.\d+\.block)\.(.+)")


def checkpoint_name(stem: str, dims: Dims, source: Tensors) -> str:
    """Of a module of the graphs, whose own names are those of Llama. `source`: the names of the checkpoint's tensors, since
    mlx-lm's copies of some families have Llama's for their MLPs."""
    ends = {"model.embed_tokens": embedding(dims), "model.norm": final_norm(dims)}
    if stem in ends:
        return ends[stem].removesuffix(".weight")
    if (found := BLOCK.fullmatch(stem)) is None:
        return stem
    names, (block, path) = names_of(dims), found.groups()
    part, _, last = path.partition(".")
    if part in NORMS[dims.norms] and names.norms is not None:
        path = names.norms[NORMS[dims.norms].index(part)]
    elif part == "self_attn":
        own = {"o_proj": names.output, "q_norm": names.query_norm, "k_norm": names.key_norm}
        path = ".".join([names.attention, *[own.get(last, last)] * bool(last)])
    elif dims.experts is not None and path == f"{dims.experts.path}.{dims.experts.gate.partition('.')[0]}":
        path = f"{dims.experts.path}.{dims.experts.gate}"
    elif part == "mlp":
        own = {"gate_proj": names.gate, "up_proj": names.up, "down_proj": names.down}
        if f"{block}.{names.mlp}.gate_proj.weight" in source:
            own = {}
        elif names.joined_mlp is not None:
            joined, inputs, output = names.joined_mlp
            return f"{block}.{joined}.{inputs if last == 'gate_up_proj' else output}"
        path = ".".join([names.mlp, *[own.get(last, last)] * bool(last)])
    return f"{block.replace('model', names.inner, 1) if block.startswith('model') else block}.{path}"
