"""The graphs of a fused folder: one decoding round, and plain decoding (docs/onnx.md explains every input)."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir
from onnxscript import GraphBuilder, OpBuilder
from onnxscript.nn import Module

from mtpd_onnx.dims import Dims
from mtpd_onnx.flavours import Cache, Flavour, Fused, Positions, widened
from mtpd_onnx.modules import Base, MTPHeads
from mtpd_onnx.packed import Packed, pack_modules
from mtpd_onnx.rope import rope_tables

OPSET, IR_VERSION = 23, 10
I64, I32 = ir.DataType.INT64, ir.DataType.INT32
END = (1 << 63) - 1  # as the end of a slice: to the last row


@dataclass(frozen=True)
class Spec:
    """What to build: K heads (0: none), precision, cache capacity and how states pass from head to head."""

    dims: Dims
    num_heads: int
    hidden_source: str
    dtype: ir.DataType
    capacity: int
    draft_tokens: tuple[int, ...] | None = None  # ids of the draft vocabulary
    layouts: Mapping[str, Packed] = field(default_factory=dict)  # the matrices stored in integers (layouts.py)

    def heads(self, flavour: Flavour) -> MTPHeads:
        drafts = None if self.draft_tokens is None else len(self.draft_tokens)
        return MTPHeads(self.dims, self.num_heads, self.dtype, flavour, drafts)


@dataclass
class Graph:
    """A graph being built; parameters are registered under their full names."""

    spec: Spec
    name: str
    domains: dict[str, int] = field(default_factory=lambda: {"": OPSET, "com.microsoft": 1})

    def __post_init__(self) -> None:
        self.ir = ir.Graph([], [], nodes=[], opset_imports=dict(self.domains), name=self.name)
        self.builder = GraphBuilder(self.ir)
        self.op: OpBuilder = self.builder.op

    def input(self, name: str, dtype: ir.DataType, shape: list[int | str]) -> ir.Value:
        return self.builder.input(name, dtype, shape)

    def output(self, value: ir.Value | None, name: str, dtype: ir.DataType, shape: list[int | str]) -> None:
        assert value is not None
        value = self.op.Identity(value) if value.is_graph_input() or value in self.ir.outputs else value
        value.name, value.dtype, value.shape = name, dtype, ir.Shape(shape)
        self.ir.outputs.append(value)

    def parameters(self, module: Module) -> None:
        """Names the parameters after their path in the module tree and makes them initializers."""
        pack_modules(module, self.spec.layouts)
        for name, parameter in module.named_parameters():
            parameter.name = name
            parameter._realized = True  # a module used in two places would otherwise be named after the second
            self.ir.initializers[name] = parameter

    def constant(self, name: str, array: np.ndarray) -> ir.Value:
        """A small tensor stored inside the graph file or, when large, with the weights."""
        value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
        value.dtype, value.shape = ir.DataType.from_numpy(array.dtype), ir.Shape(array.shape)
        self.ir.initializers[name] = value
        return value

    def rope(self, positions: int) -> tuple[ir.Value, ir.Value]:
        cos, sin = (t.astype(self.spec.dtype.numpy()) for t in rope_tables(self.spec.dims, positions))
        return self.constant("rope.cos", cos), self.constant("rope.sin", sin)

    def model(self) -> ir.Model:
        return ir.Model(self.ir, ir_version=IR_VERSION, producer_name="mtpd-mlx")


def cache_names(spec: Spec) -> list[tuple[str, str]]:
    """(input stem, output stem) of every cache: the base's layers, then the heads."""
    layers = [(f"past_key_values.{i}", f"present.{i}") for i in range(spec.dims.num_layers)]
    return layers + [(f"past_mtp.{k}", f"present_mtp.{k}") for k in range(spec.num_heads)]


def shared_caches(graph: Graph) -> list[Cache]:
    """Cache inputs [1, kv heads, capacity, head_dim]; input and output are meant to be bound to one buffer."""
    dims, spec = graph.spec.dims, graph.spec
    shape: list[int | str] = [1, dims.num_kv_heads, spec.capacity, dims.head_dim]
    return [
        Cache(graph.input(f"{stem}.key", spec.dtype, shape), graph.input(f"{stem}.value", spec.dtype, shape))
        for stem, _ in cache_names(spec)
    ]


def cache_outputs(graph: Graph, caches: list[Cache], shape: list[int | str]) -> None:
    for (_, stem), cache in zip(cache_names(graph.spec), caches, strict=True):
        graph.output(cache.key, f"{stem}.key", graph.spec.dtype, shape)
        graph.output(cache.value, f"{stem}.value", graph.spec.dtype, shape)


def build_plain(spec: Spec) -> ir.Model:
    """The main model alone. tokens [S] at positions P..P+S-1; checked [R]: the rows (the last one S-1) after which the
    next token, `predicted` [R], or its `logits` [R, V] are wanted."""
    spec = replace(spec, num_heads=0, draft_tokens=None)
    graph = Graph(spec, "plain")
    op = graph.op
    base = Base(spec.dims, spec.dtype, Fused())
    graph.parameters(base)
    tokens = graph.input("tokens", I64, ["S"])
    checked = graph.input("checked", I64, ["R"])
    seqlens = graph.input("main_seqlens", I32, [1])
    caches = shared_caches(graph)
    _, hidden = base.model(op, op.Unsqueeze(tokens, [0]), caches, fused_positions(graph, seqlens))
    logits = widened(op, base.logits(op, op.Gather(hidden, checked, axis=1)))
    assert logits.dtype is not None
    graph.output(op.Squeeze(argmax(op, logits), [0]), "predicted", I64, ["R"])
    graph.output(op.Squeeze(logits, [0]), "logits", logits.dtype, ["R", spec.dims.vocab_size])
    cache_outputs(graph, caches, [1, spec.dims.num_kv_heads, spec.capacity, spec.dims.head_dim])
    return graph.model()


def fused_positions(graph: Graph, seqlens: ir.Value) -> Positions:
    """`seqlens` int32 [1]: the position of the last row."""
    cos, sin = graph.rope(graph.spec.capacity)
    total = graph.constant("capacity", np.array(graph.spec.capacity, dtype=np.int32))
    return Positions(cos, sin, last=seqlens, total=total)


def argmax(op: OpBuilder, logits: ir.Value) -> ir.Value:
    """[.., V] -> int64 [..]; the first of equal values, as everywhere."""
    return op.ArgMax(widened(op, logits), axis=-1, keepdims=0, select_last_index=0)


def build_round(spec: Spec) -> ir.Model:
    """Verify, accept and draft in one run; also prefill and the plain steps of very short contexts.

    Before: positions 0..P-1 cached; tokens [S] = x_P and what follows (drafts, or prompt tokens). checked [R]: the
    consecutive rows, the last one S-1, after which the main head is asked: all in a round, S-1 alone where every token
    is known. a = row of the first checked token that the main head did not predict, else S-1; t = P + a is the last
    position with a final hidden state, x_{t+1} = the main head's token there. The heads run over the window of W
    positions t-W+1..t.
    """
    graph = Graph(spec, "round")
    op, k, d = graph.op, spec.num_heads, spec.dims.hidden_size
    base, heads = Base(spec.dims, spec.dtype, Fused()), spec.heads(Fused())
    graph.parameters(base)
    graph.parameters(heads)
    tokens = graph.input("tokens", I64, ["S"])
    checked = graph.input("checked", I64, ["R"])
    main_seqlens = graph.input("main_seqlens", I32, [1])  # P + S - 1
    past_length = graph.input("past_length", I32, [1])  # P
    window = graph.input("window", I64, ["W"])  # K - (W - 1) + 0..W-1: rows of the window relative to a
    hidden_tail = graph.input("hidden_tail", spec.dtype, [k, d])  # h^0 at positions P-K..P-1
    token_tail = graph.input("token_tail", I64, [k])  # x at positions P-K..P-1
    caches = shared_caches(graph)
    main_caches, head_caches = caches[: spec.dims.num_layers], caches[spec.dims.num_layers :]

    positions = fused_positions(graph, main_seqlens)
    prenorm, postnorm = base.model(op, op.Unsqueeze(tokens, [0]), main_caches, positions)
    predicted = op.Squeeze(argmax(op, base.logits(op, op.Gather(postnorm, checked, axis=1))), [0])  # [R]
    accepted = accept(op, tokens, predicted, checked)
    following = op.Gather(predicted, op.Sub(accepted, op.Slice(checked, [0], [1])))  # [1]: x_{t+1}

    source = postnorm if spec.hidden_source == "postnorm" else prenorm
    rows = op.Concat(op.Unsqueeze(hidden_tail, [0]), source, axis=1)  # [1, K + S, d]: positions P-K..P+S-1
    known = op.Concat(token_tail, tokens, axis=0)  # [K + S]: the same positions
    where = op.Add(window, accepted)  # [W]
    words = op.Concat(op.Gather(known, op.Slice(where, [1], [END])), following, axis=0)  # [W]: x_{s+1}
    positions.last = op.Add(past_length, op.Cast(accepted, to=I32))  # t
    state = op.Gather(rows, where, axis=1)  # [1, W, d]
    drafts = draft_chain(graph, base, heads, state, op.Unsqueeze(words, [0]), head_caches, positions)

    tail = op.Add(accepted, list(range(1, k + 1)))  # rows of positions t-K+1..t
    graph.output(predicted, "predicted", I64, ["R"])
    graph.output(accepted, "accepted", I64, [1])
    graph.output(op.Squeeze(drafts, [0]), "drafts", I64, [k])
    graph.output(op.Squeeze(op.Gather(rows, tail, axis=1), [0]), "next_hidden_tail", spec.dtype, [k, d])
    graph.output(op.Gather(known, tail), "next_token_tail", I64, [k])
    cache_outputs(graph, caches, [1, spec.dims.num_kv_heads, spec.capacity, spec.dims.head_dim])
    return graph.model()


def accept(op: OpBuilder, tokens: ir.Value, predicted: ir.Value, checked: ir.Value) -> ir.Value:
    """The first checked row whose prediction is not the token after it, int64 [1] (greedy acceptance).

    No token follows row S-1, so that the run always ends there.
    """
    after = op.Gather(op.Concat(op.Slice(tokens, [1], [END]), [-1], axis=0), checked)
    wrong = op.Where(op.Equal(predicted, after), END, checked)
    return op.ReduceMin(wrong, keepdims=1)


def draft_chain(
    graph: Graph,
    base: Base,
    heads: MTPHeads,
    state: ir.Value,
    words: ir.Value,
    caches: list[Cache],
    positions: Positions,
) -> ir.Value:
    """The cascade over one window: state [.., W, d] = h^0, words [.., W] = x_{s+1}; drafts int64 [.., K] of the last row."""
    op, guesses = graph.op, []
    tokens = graph.spec.draft_tokens
    ids = None if tokens is None else graph.constant("draft_tokens", np.array(tokens, dtype=np.int64))
    for k, (head, cache) in enumerate(zip(heads.heads, caches, strict=True)):
        sums = head(op, state, base.model.embed_tokens(op, words), cache, positions)
        raw, normed = base.model.norm(op, *sums)
        last = op.Gather(normed, [-1], axis=-2)
        if heads.draft_head is None or ids is None:
            guesses.append(argmax(op, base.logits(op, last)))  # [.., 1]
        else:
            guesses.append(op.Gather(ids, argmax(op, heads.draft_head(op, last))))
        if k + 1 < len(heads.heads):
            words = op.Concat(op.Slice(words, [1], [END], [-1]), guesses[-1], axis=-1)
            state = normed if graph.spec.hidden_source == "postnorm" else raw
    return guesses[0] if len(guesses) == 1 else op.Concat(*guesses, axis=-1)
