"""Parts that every exported graph is made of, and the graph of plain decoding.

Called by export/export.py; round.py, decoder.py, batch.py and split.py build the other graphs of it. Every input:
docs/internals/onnx.md.
Shapes: S new positions, P cached ones, R rows asked for, V vocabulary, D draft vocabulary, d hidden size, K heads.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import onnx_ir as ir
from onnxscript import GraphBuilder, OpBuilder
from onnxscript.nn import Module, Parameter

from mtpd_mlx.families.dims import Layer
from mtpd_mlx.speculative.sampling import KINDS, REPLACE
from mtpd_onnx.dims import Dims, has_state
from mtpd_onnx.graphs.cuda_modules import best_of_blocks, largest_of_blocks, likeliest_of_blocks, transpose_modules
from mtpd_onnx.graphs.delta import ROWS, STATE, Journal, Recurrence, journal, ring_size, row_size
from mtpd_onnx.graphs.finite import marked
from mtpd_onnx.graphs.flavours import CUDA_TYPES, Cache, Flavour, Kept, Positions, Spare, widened
from mtpd_onnx.graphs.folding import folding_of
from mtpd_onnx.graphs.fused import Fused
from mtpd_onnx.graphs.history import CONV, History, Places, places, positions_of
from mtpd_onnx.graphs.modules import Base, MTPHead, MTPHeads
from mtpd_onnx.graphs.packed_modules import Packed, pack_modules
from mtpd_onnx.graphs.rope import rope_tables
from mtpd_onnx.graphs.sampling import CONTEXT, SETTINGS, Sampler, likeliest

OPSET, IR_VERSION = 23, 10
I64, I32 = ir.DataType.INT64, ir.DataType.INT32
END = (1 << 63) - 1  # as the end of a slice: to the last row


# Of what a block keeps, by name: its shape [heads, positions, size] without the batch; 0 positions: as many as the cache has.
Sizes = dict[str, tuple[int, int, int]]


@dataclass(frozen=True)
class Spec:
    """What to build: K heads (0: none), precision, cache capacity and how states pass from head to head."""

    dims: Dims
    num_heads: int
    hidden_source: str
    dtype: ir.DataType
    capacity: int
    draft_tokens: tuple[int, ...] | None = None  # ids of the draft vocabulary
    post_norms: bool = False  # each head has a final norm of its own
    draft_bits: int | None = None  # the drafts have an output head of their own, in so many bits
    layouts: Mapping[str, Packed] = field(
        default_factory=dict
    )  # the matrices stored in integers (weights/quantised_layouts.py)

    def heads(self, flavour: Flavour) -> MTPHeads:
        """The cascade in operators of `flavour`, with an output head of its own where drafts have one."""
        drafts = None if self.draft_bits is None else self.dims.vocab_size
        if self.draft_tokens is not None:
            drafts = len(self.draft_tokens)
        return MTPHeads(self.dims, self.num_heads, self.dtype, flavour, drafts, self.post_norms)


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
        """A graph input; a text as size is a free dimension."""
        return self.builder.input(name, dtype, shape)

    def output(self, value: ir.Value | None, name: str, dtype: ir.DataType, shape: list[int | str]) -> None:
        """Makes `value` a graph output (through Identity where it is an input or an output already)."""
        assert value is not None
        value = self.op.Identity(value) if value.is_graph_input() or value in self.ir.outputs else value
        value.name, value.dtype, value.shape = name, dtype, ir.Shape(shape)
        self.ir.outputs.append(value)

    def parameters(self, module: Module) -> None:
        """Names the parameters after their path in the module tree and makes them initializers."""
        pack_modules(module, self.spec.layouts)
        transpose_modules(module)
        for name, parameter in module.named_parameters():
            keep_name(parameter, name)
            self.ir.initializers[name] = parameter

    def constant(self, name: str, array: np.ndarray) -> ir.Value:
        """A small tensor stored inside the graph file or, when large, with the weights."""
        value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
        value.dtype, value.shape = ir.DataType.from_numpy(array.dtype), ir.Shape(array.shape)
        self.ir.initializers[name] = value
        return value

    def rope(self, positions: int, local: bool = False) -> tuple[ir.Value, ir.Value]:
        """(cos, sin) tables [positions, rotated dims / 2]; `local`: those of sliding layers."""
        cos, sin = (t.astype(self.spec.dtype.numpy()) for t in rope_tables(self.spec.dims, positions, local))
        stem = "rope.local" if local else "rope"
        return self.constant(f"{stem}.cos", cos), self.constant(f"{stem}.sin", sin)

    def local_rope(self, positions: int) -> tuple[ir.Value, ir.Value] | None:
        """The tables of sliding layers, where the model has layers with a rotation of their own; else None."""
        wanted = any(layer.rope == "local" for layer in self.spec.dims.layers)
        return self.rope(positions, local=True) if wanted else None

    def model(self) -> ir.Model:
        """The finished graph as a model."""
        return ir.Model(self.ir, ir_version=IR_VERSION, producer_name="mtpd-mlx")


def keep_name(parameter: Parameter, name: str) -> None:
    """Else a module that is used in two places would name its parameters after the second.

    Sets Parameter._realized of onnxscript.nn, which is private. Broken by another way of naming parameters when they are used.
    """
    parameter.name, parameter._realized = name, True


def cache_names(spec: Spec) -> list[tuple[str, str]]:
    """(input stem, output stem) of every cache: the base's layers, then the heads."""
    layers = [(f"past_key_values.{i}", f"present.{i}") for i in range(spec.dims.num_layers)]
    return layers + [(f"past_mtp.{k}", f"present_mtp.{k}") for k in range(spec.num_heads)]


def shared_caches(graph: Graph) -> list[Kept]:
    """Cache inputs [1, kv heads, capacity, head_dim]; input and output are meant to be bound to one buffer."""
    return cache_inputs(graph, 1)


def cache_inputs(graph: Graph, batch: int | str) -> list[Kept]:
    """Caches of fixed capacity [batch, kv heads, capacity, head_dim], each of its own layer's sizes; histories [batch, 1,
    capacity, channels] of layers that convolve; rows and states of delta nets."""
    spec, caches = graph.spec, list[Kept]()
    for (stem, _), sizes in zip(cache_names(spec), cache_sizes(spec), strict=True):
        shapes = {part: [batch, heads, length or spec.capacity, size] for part, (heads, length, size) in sizes.items()}
        caches.append(kept_of(sizes, [graph.input(f"{stem}.{part}", spec.dtype, shape) for part, shape in shapes.items()]))
    return caches


def kept_of(sizes: Sizes, parts: list[ir.Value]) -> Kept:
    """What a block keeps, of the graph inputs for it."""
    return History(*parts) if CONV in sizes else Recurrence(*parts) if ROWS in sizes else Cache(*parts)


def cache_sizes(spec: Spec, growing: bool = False) -> list[Sizes]:
    """Of the base's layers, then of the heads. `growing`: of the split layout, where all of it is kept by position."""
    layers = [*spec.dims.layers, *spec.num_heads * [spec.dims.head_layer]]
    return [layer_sizes(spec.dims, layer, growing) for layer in layers]


def layer_sizes(dims: Dims, layer: Layer, growing: bool = False) -> Sizes:
    """What a block keeps."""
    if layer.mixer == "attention":
        own = dims.geometry(layer)
        return dict.fromkeys(("key", "value"), (own.num_kv_heads, 0, own.head_dim))
    kind = dims.recurrent
    assert kind is not None
    if layer.mixer == "conv":
        return {CONV: (1, 0, kind.channels)}
    if growing:
        return {ROWS: (1, 0, row_size(kind))}
    return {ROWS: (1, ring_size(kind), row_size(kind)), STATE: (kind.heads, kind.key, kind.value)}


def kept_values(cache: Kept) -> list[ir.Value | None]:
    """What comes out of a block, in the order of cache_sizes."""
    if isinstance(cache, Recurrence):
        return [cache.rows] if cache.past_state is None else [cache.rows, cache.state]
    return [cache.rows] if isinstance(cache, History) else [cache.key, cache.value]


def cache_outputs(graph: Graph, caches: Sequence[Kept], batch: int | str = 1) -> None:
    """Makes what is kept in every cache graph outputs, named as cache_names says, of the shapes of the inputs."""
    spec = graph.spec
    for (_, stem), cache, sizes in zip(cache_names(spec), caches, cache_sizes(spec), strict=True):
        for (part, (heads, length, size)), value in zip(sizes.items(), kept_values(cache), strict=True):
            graph.output(value, f"{stem}.{part}", spec.dtype, [batch, heads, length or spec.capacity, size])


def attention_caches(caches: Sequence[Kept]) -> list[Cache]:
    """Those of heads, which attend."""
    return [cache for cache in caches if isinstance(cache, Cache)]


def build_plain(spec: Spec, sampled: bool = False) -> ir.Model:
    """The main model alone. tokens [S] at positions P..P+S-1; checked [R]: the rows (the last one S-1) after which the
    next token or the `logits` [R, V] are wanted. next_tokens [1] follows row S-1 (marked: graphs/finite.py); it and
    next_main_seqlens are the next step's inputs (S = 1)."""
    spec = replace(spec, num_heads=0, draft_tokens=None)
    graph = Graph(spec, "plain")
    op = graph.op
    base = Base(spec.dims, spec.dtype, Fused())
    graph.parameters(base)
    tokens = graph.input("tokens", I64, ["S"])
    checked = graph.input("checked", I64, ["R"])
    seqlens = graph.input("main_seqlens", I32, [1])  # P + S - 1
    sampler = sampler_inputs(graph) if sampled else None
    caches = shared_caches(graph)
    _, hidden = base.model(op, op.Unsqueeze(tokens, [0]), caches, fused_positions(graph, seqlens, tokens))
    logits = op.Squeeze(widened(op, base.logits(op, op.Gather(hidden, checked, axis=1))), [0])
    last = op.Slice(logits, [-1], [END], [0])  # [1, V]
    if sampler is None:
        following, largest = best_of(graph, last)
    else:
        end = op.Slice(checked, [-1], [END])
        recent = next_recent(op, sampler, tokens, end)
        position = op.Cast(op.Add(seqlens, [1]), to=I64)
        p = sampler.of(op, last, op.Unsqueeze(recent, [0]))
        following = sampler.draw(op, p, sampler.uniform(op, position, REPLACE))
        largest = largest_known(graph, sampler)
        graph.output(recent, "next_recent", I64, [CONTEXT])
    graph.output(marked(op, following, last, largest), "next_tokens", I64, [1])
    made = op.Cast(op.GreaterOrEqual(following, [0]), to=I32)  # 1, when all readers of seqlens, which it replaces, are done
    graph.output(op.Add(seqlens, made), "next_main_seqlens", I32, [1])
    if sampler is None:
        assert logits.dtype is not None
        graph.output(logits, "logits", logits.dtype, ["R", spec.dims.vocab_size])
    cache_outputs(graph, caches)
    return graph.model()


def sampler_inputs(graph: Graph) -> Sampler:
    """The inputs that sampling needs: settings, uniforms [U, kinds of draws] and the last CONTEXT tokens."""
    settings = graph.input("settings", ir.DataType.FLOAT, [len(SETTINGS)])
    uniforms = graph.input("uniforms", ir.DataType.FLOAT, ["U", KINDS])
    recent = graph.input("recent", I64, [CONTEXT])
    vocab = graph.spec.dims.vocab_size
    if graph.spec.dtype not in CUDA_TYPES:
        return Sampler(settings, vocab, uniforms, recent, branch="least", likeliest_of=likeliest)
    return Sampler(settings, vocab, uniforms, recent, largest_of=largest_of_blocks, likeliest_of=likeliest_of_blocks)


def largest_known(graph: Graph, sampler: Sampler) -> ir.Value | None:
    """The largest logits [n] of the rows that `sampler` was given last, for devices where finding them takes long (penalised
    ones: these are finite where the rows are). None elsewhere."""
    return graph.op.Squeeze(sampler.largest, [1]) if graph.spec.dtype in CUDA_TYPES else None


def next_recent(op: OpBuilder, sampler: Sampler, tokens: ir.Value, row: ir.Value) -> ir.Value:
    """The last CONTEXT tokens up to row [1] of tokens [S], int64 [CONTEXT]."""
    return op.Gather(op.Concat(sampler.recent, tokens, axis=0), op.Add(row, list(range(1, CONTEXT + 1))))


def fused_positions(graph: Graph, seqlens: ir.Value, tokens: ir.Value | None = None) -> Positions:
    """`seqlens` int32 [1]: the position of the last row. `tokens` [S] of one text: on CPUs attention is then the same, bit for
    bit, for one row and for several."""
    cos, sin = graph.rope(graph.spec.capacity)
    total = graph.constant("capacity", np.array(graph.spec.capacity, dtype=np.int32))
    spare = None if tokens is None or graph.spec.dtype in CUDA_TYPES else spare_row(graph, seqlens, tokens)
    kept = None if tokens is None else places_of(graph, lambda: (positions_of(graph.op, tokens, seqlens), None))
    local = graph.local_rope(graph.spec.capacity)
    again = None if tokens is None else journal_of(graph, tokens, seqlens)
    return Positions(cos, sin, last=seqlens, total=total, local=local, spare=spare, places=kept, journal=again)


def places_of(graph: Graph, rows: Callable[[], tuple[ir.Value, ir.Value | None]]) -> Places | None:
    """Where rows lie in histories; None where the model has none. `rows`: writes their positions int64 [S] into the graph, and
    which texts' they are [S] (None: the first's)."""
    if (kind := graph.spec.dims.recurrent) is None or kind.kind != "conv":
        return None
    return places(graph, *rows(), each_number=graph.spec.dtype in CUDA_TYPES)


def journal_of(graph: Graph, tokens: ir.Value, last: ir.Value) -> Journal | None:
    """Of tokens [S], the last one at position `last` int32 [1]; None where the model has no state. Once a graph."""
    kind = graph.spec.dims.recurrent
    return journal(graph, tokens, last) if kind is not None and has_state(graph.spec.dims) else None


def spare_row(graph: Graph, seqlens: ir.Value, tokens: ir.Value) -> Spare:
    """For a call of one row, but at the last position of the cache."""
    op = graph.op
    rows, end = op.Shape(tokens), graph.constant("last_position", np.array([graph.spec.capacity - 1], np.int32))
    alone = op.And(op.Equal(rows, [1]), op.Less(seqlens, end))
    pads = op.Concat([0, 0, 0, 0], op.Cast(alone, to=I64), [0], axis=0)
    return Spare(rows, pads, op.Add(seqlens, op.Cast(alone, to=I32)), folding_of(graph, rows, seqlens))


def argmax(op: OpBuilder, logits: ir.Value) -> ir.Value:
    """[.., V] -> int64 [..]; the first of equal values, as everywhere."""
    return op.ArgMax(widened(op, logits), axis=-1, keepdims=0, select_last_index=0)


def best_of(graph: Graph, logits: ir.Value) -> tuple[ir.Value, ir.Value | None]:
    """As argmax, and the largest values [..] where they are known then."""
    if graph.spec.dtype in CUDA_TYPES:
        return best_of_blocks(graph.op, logits)
    return argmax(graph.op, logits), None


def draft_chain(
    graph: Graph,
    base: Base,
    heads: MTPHeads,
    state: ir.Value,
    words: ir.Value,
    caches: list[Cache],
    positions: Positions,
    guess: Callable[[ir.Value], ir.Value] | None = None,
) -> ir.Value:
    """The cascade over one window: state [.., W, d] = h^0, words [.., W] = x_{s+1}; drafts int64 [.., K] of the last row.

    `guess` chooses a token [.., 1] from logits [.., 1, V] (with a draft vocabulary [.., 1, D]); by default the best one.
    """
    op, guesses = graph.op, []
    choose = guess or partial(best_draft, graph)
    for k, (head, cache) in enumerate(zip(heads.heads, caches, strict=True)):
        sums = head(op, state, base.model.embed_tokens(op, words), cache, positions)
        assert isinstance(head, MTPHead)
        raw, normed = head.final_norm(base)(op, *sums)
        last = op.Gather(normed, [-1], axis=-2)
        guesses.append(choose(draft_logits(op, base, heads, last)))
        if k + 1 < len(heads.heads):
            words = op.Concat(op.Slice(words, [1], [END], [-1]), guesses[-1], axis=-1)
            state = normed if graph.spec.hidden_source == "postnorm" else raw
    return guesses[0] if len(guesses) == 1 else op.Concat(*guesses, axis=-1)


def draft_logits(op: OpBuilder, base: Base, heads: MTPHeads, normed: ir.Value) -> ir.Value:
    """Of normed head states [.., d]: [.., V], or [.., D] with a draft vocabulary."""
    return base.logits(op, normed) if heads.draft_head is None else base.finish(op, heads.draft_head(op, normed))


def best_draft(graph: Graph, logits: ir.Value) -> ir.Value:
    """The ids of the best drafts."""
    ids, (best, _) = draft_ids(graph), best_of(graph, logits)
    return best if ids is None else graph.op.Gather(ids, best)


def draft_ids(graph: Graph) -> ir.Value | None:
    """The ids of the draft vocabulary, int64 [D]."""
    tokens = graph.spec.draft_tokens
    if tokens is None:
        return None
    known = graph.ir.initializers.get("draft_tokens")
    return graph.constant("draft_tokens", np.array(tokens, dtype=np.int64)) if known is None else known
