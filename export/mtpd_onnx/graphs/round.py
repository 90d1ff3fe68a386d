"""`build_round`: one decoding round as a graph (verify, accept and draft in one run).
Called by export/export.py. Every input: docs/internals/onnx.md."""

import numpy as np
import onnx_ir as ir
from onnxscript import OpBuilder

from mtpd_onnx.graphs.builder import (
    END,
    I32,
    I64,
    Graph,
    Spec,
    attention_caches,
    best_of,
    cache_outputs,
    draft_chain,
    draft_ids,
    fused_positions,
    largest_known,
    next_recent,
    sampler_inputs,
    shared_caches,
)
from mtpd_onnx.graphs.finite import marked
from mtpd_onnx.graphs.fused import Fused
from mtpd_onnx.graphs.modules import Base
from mtpd_onnx.graphs.sampling import CONTEXT, F32, NOT_DRAFTED, Sampler


def build_round(spec: Spec, sampled: bool = False) -> ir.Model:
    """Verify, accept and draft in one run; also prefill and the plain steps of very short contexts.

    Before: positions 0..P-1 cached; tokens [S] = x_P and what follows (drafts, or prompt tokens). checked [R]: the
    consecutive rows, the last one S-1, after which the main head is asked: all in a round, S-1 alone where every token
    is known. a = row of the first checked token that is not accepted, else S-1; t = P + a is the last position with a
    final hidden state, x_{t+1} = the main head's token there. The heads run over the window of W positions t-W+1..t.
    The outputs next_* are the inputs of the next round, so that state need never leave the device.
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
    rule = SampledRule(graph, tokens, checked, past_length) if sampled else GreedyRule(graph, tokens, checked)
    caches = shared_caches(graph)
    main_caches, head_caches = caches[: spec.dims.num_layers], attention_caches(caches[spec.dims.num_layers :])

    positions = fused_positions(graph, main_seqlens, tokens)
    prenorm, postnorm = base.model(op, op.Unsqueeze(tokens, [0]), main_caches, positions)
    logits = op.Squeeze(base.logits(op, op.Gather(postnorm, checked, axis=1)), [0])  # [R, V]
    accepted, following, emitted = rule.accept(logits)  # row a; x_{t+1} [1]; the tokens after the checked rows [R]

    source = postnorm if spec.hidden_source == "postnorm" else prenorm
    rows = op.Concat(op.Unsqueeze(hidden_tail, [0]), source, axis=1)  # [1, K + S, d]: positions P-K..P+S-1
    known = op.Concat(token_tail, tokens, axis=0)  # [K + S]: the same positions
    where = op.Add(window, accepted)  # [W]
    words = op.Concat(op.Gather(known, op.Slice(where, [1], [END])), following, axis=0)  # [W]: x_{s+1}
    positions.last = op.Add(past_length, op.Cast(accepted, to=I32))  # t
    positions.spare = None  # drafts are verified
    state = op.Gather(rows, where, axis=1)  # [1, W, d]
    words = op.Unsqueeze(words, [0])
    drafts = draft_chain(graph, base, heads, state, words, head_caches, positions, rule.guess)

    tail = op.Add(accepted, list(range(1, k + 1)))  # rows of positions t-K+1..t
    first = op.Sub(accepted, op.Slice(checked, [0], [1]))  # accepted drafts
    graph.output(op.Concat(first, marked(op, emitted, logits, rule.largest), axis=0), "result", I64, ["R + 1"])
    graph.output(op.Concat(following, op.Squeeze(drafts, [0]), axis=0), "next_tokens", I64, [k + 1])
    graph.output(op.Add(positions.last, [1]), "next_past_length", I32, [1])
    graph.output(op.Add(positions.last, [k + 1]), "next_main_seqlens", I32, [1])
    graph.output(op.Squeeze(op.Gather(rows, tail, axis=1), [0]), "next_hidden_tail", spec.dtype, [k, d])
    graph.output(op.Gather(known, tail), "next_token_tail", I64, [k])
    rule.outputs()
    cache_outputs(graph, caches)
    return graph.model()


def tokens_after(op: OpBuilder, tokens: ir.Value, checked: ir.Value) -> ir.Value:
    """What stands after each checked row, int64 [R]; -1 after row S-1."""
    return op.Gather(op.Concat(op.Slice(tokens, [1], [END]), [-1], axis=0), checked)


class GreedyRule:
    """A draft is accepted where it is the main head's best token; drafts are the heads' best tokens."""

    guess = None
    largest: ir.Value | None = None  # of each row's logits, where accepting makes it known

    def __init__(self, graph: Graph, tokens: ir.Value, checked: ir.Value):
        self.graph, self.op, self.tokens, self.checked = graph, graph.op, tokens, checked

    def accept(self, logits: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value]:
        """Row S-1 is always the first wrong one where no other is: no token follows it."""
        op = self.op
        predicted, self.largest = best_of(self.graph, logits)  # [R]
        wrong = op.Where(op.Equal(predicted, tokens_after(op, self.tokens, self.checked)), END, self.checked)
        accepted = op.ReduceMin(wrong, keepdims=1)
        following = op.Gather(predicted, op.Sub(accepted, op.Slice(self.checked, [0], [1])))
        return accepted, following, predicted

    def outputs(self) -> None:
        pass


class SampledRule:
    """Rejection sampling (sampling.accept_sampled); draft_probs float32 [K, V] is what the drafts were drawn from."""

    largest: ir.Value | None = None  # as GreedyRule's

    def __init__(self, graph: Graph, tokens: ir.Value, checked: ir.Value, past_length: ir.Value):
        self.graph, self.op, self.tokens, self.checked = graph, graph.op, tokens, checked
        self.sampler: Sampler = sampler_inputs(graph)
        vocab = graph.spec.dims.vocab_size
        self.past = self.op.Cast(past_length, to=I64)
        if graph.spec.draft_tokens is not None:
            self.not_drafted = graph.constant("not_drafted", np.full((1, vocab), NOT_DRAFTED, np.float32))
        self.next_probs: list[ir.Value] = []
        self.read_probs()

    def read_probs(self) -> None:
        k, vocab = self.graph.spec.num_heads, self.graph.spec.dims.vocab_size
        self.draft_probs = self.graph.input("draft_probs", F32, [k, vocab])

    def probs_of(self, drafted: ir.Value) -> ir.Value:
        """What the drafts behind these rows were drawn from, [n, V]: in a round, checked rows are the drafts' numbers."""
        return self.op.Gather(self.draft_probs, drafted)

    def accept(self, logits: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value]:
        op, sampler, checked = self.op, self.sampler, self.checked
        known = op.Concat(sampler.recent, self.tokens, axis=0)
        span = self.graph.constant("context.rows", np.arange(1, CONTEXT + 1, dtype=np.int64)[None])
        p = sampler.of(op, logits, op.Gather(known, op.Add(op.Unsqueeze(checked, [1]), span)))  # [R, V]
        self.largest = largest_known(self.graph, sampler)
        drafted, last = op.Slice(checked, [0], [-1]), op.Slice(checked, [-1], [END])  # rows before a draft; row S-1
        after = tokens_after(op, self.tokens, checked)  # [R]
        q = self.probs_of(drafted)  # [R - 1, V]
        positions = op.Add(op.Add(self.past, drafted), [1])
        right = sampler.accepts(op, op.Slice(p, [0], [-1]), q, op.Slice(after, [0], [-1]), positions)
        accepted = op.ReduceMin(op.Concat(op.Where(right, END, drafted), last, axis=0), keepdims=1)
        row = op.Sub(accepted, op.Slice(checked, [0], [1]))
        nothing = self.graph.constant("no_probs", np.zeros((1, self.graph.spec.dims.vocab_size), np.float32))
        q = op.Concat(q, nothing, axis=0)
        self.position = op.Add(op.Add(self.past, accepted), [1])  # t + 1
        following = sampler.replace(op, op.Gather(p, row), op.Gather(q, row), self.position)
        self.next_recent = next_recent(op, sampler, self.tokens, accepted)
        self.context = self._with(self.next_recent, following)
        return accepted, following, op.Where(op.Less(checked, accepted), after, following)

    def _with(self, context: ir.Value, token: ir.Value) -> ir.Value:
        return self.op.Concat(self.op.Slice(context, [1], [END]), token, axis=0)

    def guess(self, logits: ir.Value) -> ir.Value:
        """A token [1, 1] from a head's logits [1, 1, V or D]."""
        self.position = self.op.Add(self.position, [1])
        token, q = self.draw(logits, self.context, self.position)
        self.context = self._with(self.context, token)
        self.next_probs.append(q)
        return self.op.Unsqueeze(token, [0])

    def draw(self, logits: ir.Value, context: ir.Value, position: ir.Value) -> tuple[ir.Value, ir.Value]:
        """A draft [1] for this position behind the tokens `context` [CONTEXT], and what it is drawn from, float32 [1, V]."""
        op, ids = self.op, draft_ids(self.graph)
        logits = op.Squeeze(logits, [0])
        if ids is not None:
            logits = op.ScatterElements(self.not_drafted, op.Unsqueeze(ids, [0]), op.Cast(logits, to=F32), axis=1)
        q = self.sampler.of_drafts(op, logits, op.Unsqueeze(context, [0]))
        return self.sampler.draft(op, q, position), q

    def outputs(self) -> None:
        k, vocab = self.graph.spec.num_heads, self.graph.spec.dims.vocab_size
        probs = self.next_probs[0] if k == 1 else self.op.Concat(*self.next_probs, axis=0)
        self.graph.output(probs, "next_draft_probs", F32, [k, vocab])
        self.graph.output(self.next_recent, "next_recent", I64, [CONTEXT])
