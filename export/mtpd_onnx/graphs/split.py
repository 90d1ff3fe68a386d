"""`build_main`, `build_heads`: layout split, in standard ONNX operators with ordinary growing caches.
Called by export/export.py.

For other runtimes, for people who want to look inside, and as the oracle of the fused graph.
"""

from collections.abc import Sequence

import onnx_ir as ir

from mtpd_onnx.graphs.builder import (
    Graph,
    Sizes,
    Spec,
    argmax,
    attention_caches,
    cache_sizes,
    draft_chain,
    kept_of,
    kept_values,
)
from mtpd_onnx.graphs.finite import marked
from mtpd_onnx.graphs.flavours import Kept, Positions
from mtpd_onnx.graphs.modules import Base
from mtpd_onnx.graphs.standard import Standard

STANDARD = {"": 18}  # old enough for any runtime


def growing_caches(graph: Graph, stem: str, sizes: list[Sizes]) -> list[Kept]:
    """Cache inputs [kv heads, P, head_dim]; histories [1, P, channels] of layers that convolve."""
    caches = list[Kept]()
    for i, own in enumerate(sizes):
        parts = [graph.input(f"{stem}.{i}.{part}", graph.spec.dtype, [n, "P", size]) for part, (n, _, size) in own.items()]
        caches.append(kept_of(own, parts))
    return caches


def cache_outputs(graph: Graph, stem: str, caches: Sequence[Kept], sizes: list[Sizes]) -> None:
    for i, (cache, own) in enumerate(zip(caches, sizes, strict=True)):
        for (part, (heads, _, size)), value in zip(own.items(), kept_values(cache), strict=True):
            graph.output(value, f"{stem}.{i}.{part}", graph.spec.dtype, [heads, "T", size])


def standard_positions(graph: Graph, local: bool = False) -> Positions:
    """Inputs: rows int64 [n] (absolute positions of the new rows) and mask [n, T] (0 where attended, -1e9 elsewhere)."""
    rows = graph.input("positions", ir.DataType.INT64, ["n"])
    mask = graph.input("mask", graph.spec.dtype, ["n", "T"])
    cos, sin = graph.rope(graph.spec.capacity)
    tables = graph.local_rope(graph.spec.capacity) if local else None
    own = tables and (graph.op.Gather(tables[0], rows), graph.op.Gather(tables[1], rows))
    return Positions(graph.op.Gather(cos, rows), graph.op.Gather(sin, rows), mask=mask, rows=rows, local=own)


def build_main(spec: Spec) -> ir.Model:
    """tokens [n] -> predicted [n] (marked: graphs/finite.py), hidden [n, d] (what enters the cascade), logits [n, V]."""
    graph = Graph(spec, "main", STANDARD)
    base = Base(spec.dims, spec.dtype, Standard())
    graph.parameters(base)
    tokens = graph.input("tokens", ir.DataType.INT64, ["n"])
    positions = standard_positions(graph, local=True)
    sizes = cache_sizes(spec, growing=True)[: spec.dims.num_layers]
    caches = growing_caches(graph, "past", sizes)
    prenorm, postnorm = base.model(graph.op, tokens, caches, positions)
    logits = base.logits(graph.op, postnorm)
    hidden = postnorm if spec.hidden_source == "postnorm" else prenorm
    graph.output(marked(graph.op, argmax(graph.op, logits), logits), "predicted", ir.DataType.INT64, ["n"])
    graph.output(logits, "logits", spec.dtype, ["n", spec.dims.vocab_size])
    graph.output(hidden, "hidden", spec.dtype, ["n", spec.dims.hidden_size])
    cache_outputs(graph, "present", caches, sizes)
    return graph.model()


def build_heads(spec: Spec) -> ir.Model:
    """hidden [n, d] at the window's positions s and tokens [n] = x_{s+1} -> drafts [K]: the whole chain."""
    graph = Graph(spec, "mtp_heads", STANDARD)
    base = Base(spec.dims, spec.dtype, Standard())
    heads = spec.heads(Standard())
    own_head = heads.draft_head is not None  # then the base's output head is not in this graph
    shared = [base.model.embed_tokens, base.model.norm] + ([base.lm_head] if base.lm_head and not own_head else [])
    graph.parameters(heads)
    for module, stem in zip(shared, ("model.embed_tokens", "model.norm", "lm_head"), strict=False):
        for name, parameter in module.named_parameters():
            parameter.name, parameter._realized = f"{stem}.{name}", True
            graph.ir.initializers[parameter.name] = parameter
    hidden = graph.input("hidden", spec.dtype, ["n", spec.dims.hidden_size])
    tokens = graph.input("tokens", ir.DataType.INT64, ["n"])
    positions = standard_positions(graph)
    sizes = cache_sizes(spec, growing=True)[spec.dims.num_layers :]
    caches = attention_caches(growing_caches(graph, "past", sizes))
    drafts = draft_chain(graph, base, heads, hidden, tokens, caches, positions)
    graph.output(drafts, "drafts", ir.DataType.INT64, [spec.num_heads])
    cache_outputs(graph, "present", caches, sizes)
    return graph.model()
