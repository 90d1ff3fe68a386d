"""The graph for any number of texts decoded side by side, each at its own length.

Called by export/export.py; docs/internals/onnx.md explains the inputs.
Rows of all texts lie one behind the other [T, ..], so that products cost what their rows cost; only
attention puts each text on a line of its own. The host says where everything lies (runtime/packing.py): how many tokens and
drafts each text has, which rows are asked, which are sampled. Heads that nobody wants are not run. On CPUs onnxruntime needs
GroupQueryAttention's input `query_seqlens`, new in 1.32: how many rows of each line are real, 0 for a text that rests. Graphs
for CUDA, whose newest wheel has it not, attend over whole caches (whole_caches.py).
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnxscript import OpBuilder

from mtpd_onnx.graphs.branches import Kind, branches
from mtpd_onnx.graphs.builder import (
    I32,
    I64,
    Graph,
    Spec,
    argmax,
    attention_caches,
    best_draft,
    cache_inputs,
    cache_outputs,
    draft_ids,
    draft_logits,
    places_of,
)
from mtpd_onnx.graphs.decoder import within
from mtpd_onnx.graphs.finite import marked
from mtpd_onnx.graphs.flavours import CUDA_TYPES, Cache, Positions, Ragged
from mtpd_onnx.graphs.folding import folding_of
from mtpd_onnx.graphs.fused import Fused
from mtpd_onnx.graphs.modules import Base, MTPHead, MTPHeads
from mtpd_onnx.graphs.sampled_rows import RowSampler
from mtpd_onnx.graphs.sampling import CONTEXT, F32, SETTINGS
from mtpd_onnx.graphs.whole_caches import Whole

WHOLE_CACHES = CUDA_TYPES  # computed in where GroupQueryAttention takes several rows of one text alone


def build_batch(spec: Spec) -> ir.Model:
    """T verified tokens of B texts: order [T] says which of `known` [N] and of the drafts each is (head k's follow those of
    head k - 1). After the rows checked [R] the main head is asked; after [R]: which token stands behind each, T for none.

    `result` [2 R]: whether that token is the one to keep, 1 or 0, then the token to keep: it, or another. `hidden` [T, d]: h^0.
    """
    graph = Graph(spec, "batch")
    op = graph.op
    base, heads = Base(spec.dims, spec.dtype, Fused()), spec.heads(Fused())
    graph.parameters(base)
    graph.parameters(heads)
    known, order = graph.input("known", I64, ["N"]), graph.input("order", I64, ["T"])
    checked, after = graph.input("checked", I64, ["R"]), graph.input("after", I64, ["R"])
    tables = graph.rope(spec.capacity), graph.local_rope(spec.capacity)
    total = graph.constant("capacity", np.array(spec.capacity, dtype=np.int32))
    lines = Positions(*tables[0], total=total, local=tables[1])
    caches = cache_inputs(graph, "B")
    main_caches, head_caches = caches[: spec.dims.num_layers], attention_caches(caches[spec.dims.num_layers :])
    rule = SampledRows(graph)

    guesses: list[ir.Value] = []
    if spec.num_heads:
        chain = Chain(graph, base, heads, rule, ragged(graph, lines, "window_"))
        guesses = chain.run(head_caches)
    drafted = op.Concat(known, *guesses, axis=0) if guesses else known
    tokens = op.Gather(drafted, order)  # [T]
    positions = ragged(graph, lines, "", tokens)
    prenorm, postnorm = base.model(op, tokens, main_caches, positions)
    logits = base.logits(op, op.Gather(postnorm, checked))  # [R, V]
    standing = op.Gather(op.Concat(tokens, [-1], axis=0), after)  # [R]
    right, kept = rule.accept(logits, tokens, standing)
    graph.output(op.Concat(right, marked(op, kept, logits), axis=0), "result", I64, ["2 R"])
    if spec.num_heads:
        source = postnorm if spec.hidden_source == "postnorm" else prenorm
        graph.output(source, "hidden", spec.dtype, ["T", spec.dims.hidden_size])
    cache_outputs(graph, caches, "B")
    return graph.model()


def ragged(graph: Graph, lines: Positions, prefix: str, tokens: ir.Value | None = None) -> Positions:
    """The positions of packed rows: `rows` int64 [B, S] and `places` int64 [T, 2] (flavours.Ragged), `last` int32 [B]: the
    position of each text's last real row, `lengths` int32 [B]. `tokens` [T]: of the base, whose attention folds on CPUs."""
    op, stem = graph.op, prefix
    size, width = ("S", "T") if tokens is not None else ("W", "M")
    rows = graph.input(f"{stem}rows", I64, ["B", size])
    places = graph.input(f"{stem}places", I64, [width, 2])
    last, lengths = graph.input(f"{stem}last", I32, ["B"]), graph.input(f"{stem}lengths", I32, ["B"])
    folding = kept = whole = None
    if tokens is not None:
        kept = places_of(graph, lambda: rows_of_lines(op, places, last, lengths))
    if graph.spec.dtype in WHOLE_CACHES:
        whole = over_whole(graph, stem, rows, places, (last, lengths))
    elif tokens is not None:
        alone = op.Equal(op.Shape(last), [1])
        folding = folding_of(graph, op.Shape(tokens), op.Slice(last, [0], [1]), alone)
    return Positions(
        lines.cos,
        lines.sin,
        last=last,
        total=lines.total,
        lengths=lengths,
        local=lines.local,
        ragged=Ragged(rows, places, folding, whole),
        places=kept,
    )


def rows_of_lines(op: OpBuilder, places: ir.Value, last: ir.Value, lengths: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Position and line of each row, int64 [T], from what `ragged` takes."""
    line, step = (op.Squeeze(each, [1]) for each in op.Split(places, [1, 1], axis=1, _outputs=2))
    first = op.Cast(op.Sub(op.Add(last, [1]), lengths), to=I64)  # [B]
    return op.Add(op.Gather(first, line), step), line


def over_whole(graph: Graph, stem: str, rows: ir.Value, places: ir.Value, ends: tuple[ir.Value, ir.Value]) -> Whole:
    """`reach` int64 [1]: no text has more positions after the run. ends: `last`, `lengths`."""
    op, dims = graph.op, graph.spec.dims
    last, lengths = (op.Cast(each, to=I64) for each in ends)
    first = op.Add(op.Sub(last, lengths), [1])
    whole = Whole(op, graph.spec.dtype, rows, places, first, graph.input(f"{stem}reach", I64, [1]))
    whole.prepare(dims, [dims.head_layer] if stem else [*dims.layers])
    return whole


class SampledRows:
    """Greedy rows keep the main head's best token. The rows sampled [Z] of the checked ones are sampled instead, by rejection
    (sampling.accept_sampled): settings [Z, 5], uniforms [Z, 2] (to accept, to replace), contexts [Z, CONTEXT]: where the tokens
    before them stand among recent [X] and the T tokens. What their drafts were drawn from: row probs_of [Z] of nothing and the
    heads' distributions, or all of `certain` [Z], a token that the host knew (V: none).

    Of the texts that draft, draft_sampled [Y] sample their drafts: draft_settings [Y, 5], draft_uniforms [Y, K],
    draft_contexts [Y, CONTEXT]: the tokens before the first draft.
    """

    def __init__(self, graph: Graph):
        self.graph, self.op, spec = graph, graph.op, graph.spec
        self.vocab = spec.dims.vocab_size
        self.sampler = RowSampler(graph, self.vocab)
        self.probs: list[ir.Value] = []  # of each head, [Y or 0, V]
        self.sampled = graph.input("sampled", I64, ["Z"])
        self.settings = graph.input("settings", F32, ["Z", len(SETTINGS)])
        self.uniforms = graph.input("uniforms", F32, ["Z", 2])
        self.recent = graph.input("recent", I64, ["X"])
        self.contexts = graph.input("contexts", I64, ["Z", CONTEXT])
        self.certain, self.probs_of = graph.input("certain", I64, ["Z"]), graph.input("probs_of", I64, ["Z"])
        if spec.num_heads:
            self.draft_sampled = graph.input("draft_sampled", I64, ["Y"])
            self.draft_settings = graph.input("draft_settings", F32, ["Y", len(SETTINGS)])
            self.draft_uniforms = graph.input("draft_uniforms", F32, ["Y", spec.num_heads])
            self.draft_contexts = graph.input("draft_contexts", I64, ["Y", CONTEXT])

    def accept(self, logits: ir.Value, tokens: ir.Value, standing: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Of checked rows: is the token behind it the one to keep, int64 [R], and the one to keep, int64 [R]."""
        op = self.op
        best = argmax(op, logits)
        right = op.Cast(op.Equal(best, standing), to=I64)
        some = op.Greater(op.Shape(self.sampled), [0])
        kinds: list[Kind] = [(I64, ["R"])] * 2

        def sample(op: OpBuilder) -> list[ir.Value]:
            kept, token = self._sample(op, op.Gather(logits, self.sampled), tokens, op.Gather(standing, self.sampled))
            return [
                op.ScatterElements(right, self.sampled, op.Cast(kept, to=I64)),
                op.ScatterElements(best, self.sampled, token),
            ]

        found = branches(op, some, "accept", kinds, sample, lambda op: [op.Identity(right), op.Identity(best)])
        return found[0], found[1]

    def _sample(self, op: OpBuilder, logits: ir.Value, tokens: ir.Value, standing: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Of the sampled rows: bool [Z], int64 [Z]."""
        before = op.Gather(op.Concat(self.recent, tokens, axis=0), self.contexts)
        p = self.sampler.of(op, logits, before, self.settings)
        nothing = self.graph.constant("no_probs", np.zeros((1, self.vocab), np.float32))
        depth = self.graph.constant("vocab_size", np.array(self.vocab, np.int64))
        sure = op.OneHot(self.certain, depth, self.graph.constant("sure", np.array([0, 1], np.float32)), axis=-1)
        stack = op.Concat(nothing, *self.probs, axis=0) if self.probs else nothing
        q = op.Add(op.Gather(stack, self.probs_of), sure)
        u = [op.Squeeze(each, [1]) for each in op.Split(self.uniforms, [1, 1], axis=1, _outputs=2)]
        kept = self.sampler.accepts(op, p, q, standing, u[0])
        return kept, op.Where(kept, standing, self.sampler.replace(op, p, q, u[1]))

    def draft(self, op: OpBuilder, logits: ir.Value, contexts: ir.Value, k: int) -> tuple[ir.Value, ir.Value, ir.Value]:
        """Head k + 1's drafts of the texts, int64 [D], from logits [D, V or vocabulary of drafts]; what the sampled ones were
        drawn from, [Y, V]; and the tokens before the next ones [Y, CONTEXT]."""
        graph = within(self.graph, op)
        best = best_draft(graph, logits)
        some = op.Greater(op.Shape(self.draft_sampled), [0])
        kinds: list[Kind] = [(I64, ["D"]), (F32, ["Y", self.vocab]), (I64, ["Y", CONTEXT])]

        def sample(op: OpBuilder) -> list[ir.Value]:
            mine = self.sampler.spread(op, op.Gather(logits, self.draft_sampled), draft_ids(self.graph))
            q = self.sampler.of(op, mine, contexts, self.draft_settings)
            u = op.Squeeze(op.Slice(self.draft_uniforms, [k], [k + 1], [1]), [1])
            drawn = self.sampler.draw(op, q, u)
            longer = op.Concat(op.Slice(contexts, [1], [CONTEXT], [1]), op.Unsqueeze(drawn, [1]), axis=1)
            return [op.ScatterElements(best, self.draft_sampled, drawn), q, longer]

        def greedy(op: OpBuilder) -> list[ir.Value]:
            return [op.Identity(best), self.nothing(op), op.Identity(contexts)]

        found = branches(op, some, f"draft_{k}", kinds, sample, greedy)
        return found[0], found[1], found[2]

    def nothing(self, op: OpBuilder) -> ir.Value:
        """float32 [0, V]."""
        return op.Identity(self.graph.constant("no_rows", np.zeros((0, self.vocab), np.float32)))


@dataclass
class Chain:
    """The first num_drafts [1] heads over the windows of D texts, M rows in all: window_hidden [M, d] is h^0 there and
    window_tokens [M] are x_{s+1}. ends [D]: the last row of each text; shift [M]: which row's token the next head sees, M + i
    for the draft of text i."""

    graph: Graph
    base: Base
    heads: MTPHeads
    rule: SampledRows
    positions: Positions

    def run(self, caches: list[Cache]) -> list[ir.Value]:
        """The drafts of each head, int64 [D], or [0] of one that was not run."""
        graph, spec = self.graph, self.graph.spec
        wanted = graph.input("num_drafts", I64, [1])
        state = graph.input("window_hidden", spec.dtype, ["M", spec.dims.hidden_size])
        words = graph.input("window_tokens", I64, ["M"])
        self.shift, self.ends = graph.input("shift", I64, ["M"]), graph.input("ends", I64, ["D"])
        carried, found = [state, words, self.rule.draft_contexts], list[ir.Value]()
        for k, (head, cache) in enumerate(zip(self.heads.heads, caches, strict=True)):
            assert isinstance(head, MTPHead)
            guess, probs, carried = self._head(graph.op.Greater(wanted, [k]), k, head, cache, carried)
            found.append(guess)
            self.rule.probs.append(probs)
        return found

    def _head(
        self, wanted: ir.Value, k: int, head: MTPHead, cache: Cache, carried: list[ir.Value]
    ) -> tuple[ir.Value, ir.Value, list[ir.Value]]:
        """Runs head k + 1 where it is wanted: its drafts, what the sampled ones were drawn from, and what goes on to the next
        head (states, tokens, contexts)."""
        spec = self.graph.spec
        vocab, past = spec.dims.vocab_size, (cache.past_key, cache.past_value)
        kinds: list[Kind] = [(I64, [f"d{k}"]), (F32, [f"y{k}", vocab])]
        kinds += [(spec.dtype, ["M", spec.dims.hidden_size]), (I64, ["M"]), (I64, ["Y", CONTEXT])]
        kinds += [(spec.dtype, list(value.shape)) for value in past]  # type: ignore[arg-type]

        def run(op: OpBuilder) -> list[ir.Value]:
            return self._run_head(op, k, head, Cache(*past), carried)

        def skip(op: OpBuilder) -> list[ir.Value]:
            none = op.Identity(self.graph.constant("no_draft", np.zeros(0, np.int64)))
            return [none, self.rule.nothing(op), *(op.Identity(value) for value in (*carried, *past))]

        outputs = branches(self.graph.op, wanted, f"head_{k}", kinds, run, skip)
        guess, probs, *rest = outputs
        cache.key, cache.value = rest[3:]
        return guess, probs, rest[:3]

    def _run_head(self, op: OpBuilder, k: int, head: MTPHead, cache: Cache, carried: list[ir.Value]) -> list[ir.Value]:
        state, words, contexts = carried
        sums = head(op, state, self.base.model.embed_tokens(op, words), cache, self.positions)
        raw, normed = head.final_norm(self.base)(op, *sums)
        logits = draft_logits(op, self.base, self.heads, op.Gather(normed, self.ends))  # [D, ..]
        guess, probs, contexts = self.rule.draft(op, logits, contexts, k)
        words = op.Gather(op.Concat(words, guess, axis=0), self.shift)
        state = normed if self.graph.spec.hidden_source == "postnorm" else raw
        assert cache.key is not None and cache.value is not None
        return [guess, probs, state, words, contexts, cache.key, cache.value]
