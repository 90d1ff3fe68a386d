"""The graphs of a fused folder: one decoding round, and plain decoding (docs/onnx.md explains every input)."""

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from onnxscript import GraphBuilder, OpBuilder
from onnxscript.nn import Module

from mtpd_onnx.dims import Dims
from mtpd_onnx.modules import Base, Cache, MTPHeads, Positions
from mtpd_onnx.rope import rope_tables

OPSET, IR_VERSION = 23, 10


@dataclass(frozen=True)
class Spec:
    """What to build: K heads (0: none), precision, cache capacity and how states pass from head to head."""

    dims: Dims
    num_heads: int
    hidden_source: str
    dtype: ir.DataType
    capacity: int


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


def main_forward(
    graph: Graph, base: Base, tokens: ir.Value, caches: list[Cache], positions: Positions
) -> tuple[ir.Value, ir.Value, ir.Value]:
    """(prenorm, postnorm, logits) of all rows."""
    hidden = base.model(graph.op, tokens, caches, positions)
    normed = base.model.norm(graph.op, hidden)
    return hidden, normed, base.logits(graph.op, normed)


def argmax(op: OpBuilder, logits: ir.Value) -> ir.Value:
    """[n, V] -> int64 [n]; the first of equal values, as everywhere."""
    return op.ArgMax(logits, axis=-1, keepdims=0, select_last_index=0)


def build_plain(spec: Spec) -> ir.Model:
    """The main model alone: tokens [S] -> next token after each row, and logits for whoever asks."""
    spec = Spec(spec.dims, 0, spec.hidden_source, spec.dtype, spec.capacity)
    graph, i64, i32 = Graph(spec, "plain"), ir.DataType.INT64, ir.DataType.INT32
    base = Base(spec.dims, spec.dtype)
    graph.parameters(base)
    tokens = graph.input("tokens", i64, ["S"])
    seqlens = graph.input("main_seqlens", i32, [1])
    caches = shared_caches(graph)
    cos, sin = graph.rope(spec.capacity)
    total = graph.constant("capacity", np.array(spec.capacity, dtype=np.int32))
    _, _, logits = main_forward(graph, base, tokens, caches, Positions(cos, sin, seqlens, total))
    graph.output(argmax(graph.op, logits), "predicted", i64, ["S"])
    graph.output(logits, "logits", spec.dtype, ["S", spec.dims.vocab_size])
    cache_outputs(graph, caches, [1, spec.dims.num_kv_heads, spec.capacity, spec.dims.head_dim])
    return graph.model()


def build_round(spec: Spec) -> ir.Model:
    """Verify, accept and draft in one run; also prefill and the plain steps of very short contexts.

    Before: positions 0..P-1 cached; tokens [S] = x_P and what follows (drafts, or prompt tokens). The first `forced`
    tokens after x_P are taken as right. a = accepted count, t = P + a the last position with a final hidden state,
    x_{t+1} = predicted[a]. The heads run over the window of W positions t-W+1..t.
    """
    graph, i64, i32 = Graph(spec, "round"), ir.DataType.INT64, ir.DataType.INT32
    op, k = graph.op, spec.num_heads
    base, heads = Base(spec.dims, spec.dtype), MTPHeads(spec.dims, spec.num_heads, spec.dtype)
    graph.parameters(base)
    graph.parameters(heads)
    tokens = graph.input("tokens", i64, ["S"])
    main_seqlens = graph.input("main_seqlens", i32, [1])  # P + S - 1
    past_length = graph.input("past_length", i32, [1])  # P
    index = graph.input("index", i64, ["S"])  # 0..S-1
    forced = graph.input("forced", i64, [1])
    window = graph.input("window", i64, ["W"])  # K - (W - 1) + 0..W-1: rows of the window relative to a
    hidden_tail = graph.input("hidden_tail", spec.dtype, [k, spec.dims.hidden_size])  # h^0 at positions P-K..P-1
    token_tail = graph.input("token_tail", i64, [k])  # x at positions P-K..P-1
    caches = shared_caches(graph)
    cos, sin = graph.rope(spec.capacity)
    total = graph.constant("capacity", np.array(spec.capacity, dtype=np.int32))
    main_caches, head_caches = caches[: spec.dims.num_layers], caches[spec.dims.num_layers :]

    prenorm, postnorm, logits = main_forward(graph, base, tokens, main_caches, Positions(cos, sin, main_seqlens, total))
    predicted = argmax(op, logits)
    accepted = accept(op, tokens, predicted, index, forced)
    following = op.Gather(predicted, accepted)  # [1]: x_{t+1}

    source = postnorm if spec.hidden_source == "postnorm" else prenorm
    rows = op.Concat(hidden_tail, source, axis=0)  # [K + S, d]: positions P-K..P+S-1
    known = op.Concat(token_tail, tokens, axis=0)  # [K + S]: the same positions
    where = op.Add(window, accepted)  # [W]
    state = op.Gather(rows, where)  # [W, d]
    one = op.Constant(value_ints=[1])
    end = op.Constant(value_ints=[np.iinfo(np.int64).max])
    words = op.Concat(op.Gather(known, op.Slice(where, one, end)), following, axis=0)  # [W]: x_{s+1}
    head_seqlens = op.Add(past_length, op.Cast(accepted, to=i32))  # t
    positions = Positions(cos, sin, head_seqlens, total)
    drafts = draft_chain(graph, base, heads, state, words, head_caches, positions)

    tail = op.Add(op.Constant(value_ints=list(range(1, k + 1))), accepted)  # rows of positions t-K+1..t
    graph.output(predicted, "predicted", i64, ["S"])
    graph.output(accepted, "accepted", i64, [1])
    graph.output(drafts, "drafts", i64, [k])
    graph.output(op.Gather(rows, tail), "next_hidden_tail", spec.dtype, [k, spec.dims.hidden_size])
    graph.output(op.Gather(known, tail), "next_token_tail", i64, [k])
    cache_outputs(graph, caches, [1, spec.dims.num_kv_heads, spec.capacity, spec.dims.head_dim])
    return graph.model()


def accept(op: OpBuilder, tokens: ir.Value, predicted: ir.Value, index: ir.Value, forced: ir.Value) -> ir.Value:
    """The first j with predicted[j] != tokens[j + 1] and j >= forced, or S - 1: int64 [1] (greedy acceptance)."""
    zero, one, last = (op.Constant(value_ints=[n]) for n in (0, 1, -1))
    end = op.Constant(value_ints=[np.iinfo(np.int64).max])
    places, final = op.Slice(index, zero, last), op.Slice(index, last, end)
    agree = op.Equal(op.Slice(predicted, zero, last), op.Slice(tokens, one, end))
    right = op.Or(agree, op.Less(places, forced))
    return op.ReduceMin(op.Concat(op.Where(right, final, places), final, axis=0), keepdims=1)


def draft_chain(
    graph: Graph,
    base: Base,
    heads: MTPHeads,
    state: ir.Value,
    words: ir.Value,
    caches: list[Cache],
    positions: Positions,
) -> ir.Value:
    """The cascade over one window: state [W, d] = h^0, words [W] = x_{s+1}; drafts int64 [K] of its last row."""
    op, guesses = graph.op, []
    last = op.Constant(value_ints=[-1])
    one, end = op.Constant(value_ints=[1]), op.Constant(value_ints=[np.iinfo(np.int64).max])
    for k, head in enumerate(heads.heads):
        raw = head(op, state, base.model.embed_tokens(op, words), caches[k], positions)
        normed = base.model.norm(op, raw)
        guesses.append(argmax(op, base.logits(op, op.Gather(normed, last))))  # [1]
        if k + 1 < len(heads.heads):
            words = op.Concat(op.Slice(words, one, end), guesses[-1], axis=0)
            state = normed if graph.spec.hidden_source == "postnorm" else raw
    return guesses[0] if len(guesses) == 1 else op.Concat(*guesses, axis=0)
