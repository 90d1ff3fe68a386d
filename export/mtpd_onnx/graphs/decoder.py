"""The decoder graph for CPUs: it drafts with as many heads as it is told, then verifies.

Called by export/export.py; docs/internals/onnx.md explains the inputs.
Heads that are not wanted are not run: each is a branch of an If, which CUDA graphs cannot hold. So
plain steps, rounds of any number of drafts of any origin and prefill share one copy of the weights.
"""

from copy import copy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir
from onnxscript import OpBuilder

from mtpd_onnx.graphs.branches import Kind, branches
from mtpd_onnx.graphs.builder import (
    END,
    I32,
    I64,
    Graph,
    Spec,
    attention_caches,
    best_draft,
    cache_outputs,
    draft_logits,
    fused_positions,
    journal_of,
    places_of,
    shared_caches,
    spare_row,
)
from mtpd_onnx.graphs.finite import marked
from mtpd_onnx.graphs.flavours import Cache, Positions
from mtpd_onnx.graphs.fused import Fused
from mtpd_onnx.graphs.history import positions_of
from mtpd_onnx.graphs.modules import Base, MTPHead, MTPHeads
from mtpd_onnx.graphs.round import GreedyRule, SampledRule
from mtpd_onnx.graphs.sampling import F32

# A draft [1], the largest probability [1], what the rule carries on, and sampled: what it was drawn from [1, V].
Draft = tuple[ir.Value, ir.Value, list[ir.Value], list[ir.Value]]


def build_decoder(spec: Spec, sampled: bool = False) -> ir.Model:
    """Before: positions 0..P-1 cached; known [N] = x_P and what follows (prompt tokens, or drafts of the host's).

    The heads draft behind x_P (`_Chain`); verified [1] of their drafts, at most, follow `known`: together S tokens. The main
    head is asked after the rows first[0]..S-1. a: the first of these whose choice is not the token after it, else S-1.
    `result` [2 + N - first + K]: a - first (the accepted drafts), S - N (how many of the heads' drafts were verified), and the
    main head's tokens after the rows first..S-1; what stands beyond row a means nothing. `hidden` [N + K, d]: h^0 of the rows,
    then zeros.
    """
    graph = Graph(spec, "decoder")
    op, heads = graph.op, spec.heads(Fused())
    base = Base(spec.dims, spec.dtype, Fused())
    graph.parameters(base)
    graph.parameters(heads)
    known = graph.input("known", I64, ["N"])
    first = graph.input("first", I64, [1])
    past_length = graph.input("past_length", I32, [1])  # P
    rule = (SampledRound if sampled else GreedyRound)(graph, known, first, past_length)
    caches = shared_caches(graph)
    positions = fused_positions(graph, past_length)
    main_caches, head_caches = caches[: spec.dims.num_layers], attention_caches(caches[spec.dims.num_layers :])

    tokens = known
    if spec.num_heads:
        verified = graph.input("verified", I64, [1])
        guesses, probs = _Chain(graph, base, heads, rule, positions).run(head_caches)
        tokens = op.Concat(known, op.Slice(guesses, [0], verified), axis=0)  # [S]
        rule.probs += [op.Slice(q, [0], verified, [0]) for q in probs]
    size = op.Shape(tokens)  # [1]: S
    last = op.Add(past_length, op.Cast(op.Sub(size, [1]), to=I32))
    kept = places_of(graph, lambda: (positions_of(op, tokens, last), None))
    again = journal_of(graph, tokens, last)
    positions = replace(positions, last=last, spare=spare_row(graph, last, tokens), places=kept, journal=again)
    checked = op.Range(op.Squeeze(first, [0]), op.Squeeze(size, [0]), 1)  # [S - first]
    checked.dtype, checked.shape = I64, ir.Shape(["R"])
    rule.tokens, rule.checked = tokens, checked
    prenorm, postnorm = base.model(op, op.Unsqueeze(tokens, [0]), main_caches, positions)
    logits = op.Squeeze(base.logits(op, op.Gather(postnorm, checked, axis=1)), [0])  # [S - first, V]
    accepted, _, emitted = rule.accept(logits)
    result = [op.Sub(accepted, first), op.Sub(size, op.Shape(known)), marked(op, emitted, logits)]
    if spec.num_heads:
        source = postnorm if spec.hidden_source == "postnorm" else prenorm
        left = op.Sub([spec.num_heads], result[1])  # [1]
        width = graph.constant("hidden_size", np.array([spec.dims.hidden_size], np.int64))
        nothing = op.ConstantOfShape(op.Concat(left, width, axis=0), value=ir.tensor(np.zeros(1, spec.dtype.numpy())))
        graph.output(op.Concat(op.Squeeze(source, [0]), nothing, axis=0), "hidden", spec.dtype, ["H", spec.dims.hidden_size])
        result.append(op.ConstantOfShape(left, value=ir.tensor(np.zeros(1, np.int64))))
    graph.output(op.Concat(*result, axis=0), "result", I64, ["O"])
    cache_outputs(graph, caches)
    return graph.model()


@dataclass
class _Link:
    """What one head hands to the next: states [1, W, d] and tokens x_{s+k} [1, W] of its window, the product of the heads'
    largest probabilities so far, float32 [1], and what the rule carries."""

    state: ir.Value
    words: ir.Value
    confidence: ir.Value
    carried: list[ir.Value]


@dataclass
class _Chain:
    """The first num_drafts [1] heads over the W positions up to window_last [1].

    window_hidden [W, d]: h^0 there; window_tokens [W]: x_{s+1}. The chain ends where the product of the heads' largest
    probabilities so far is below min_confidence [1].
    """

    graph: Graph
    base: Base
    heads: MTPHeads
    rule: Any
    positions: Positions

    def run(self, caches: list[Cache]) -> tuple[ir.Value, list[ir.Value]]:
        """The drafts, int64 [as many as were made]; sampled: and what they were drawn from, float32 [the same, V]."""
        graph, op, spec = self.graph, self.graph.op, self.graph.spec
        num_drafts = graph.input("num_drafts", I64, [1])
        min_confidence = graph.input("min_confidence", F32, [1])
        hidden = graph.input("window_hidden", spec.dtype, ["W", spec.dims.hidden_size])
        words = graph.input("window_tokens", I64, ["W"])
        self.positions = replace(self.positions, last=graph.input("window_last", I32, [1]))
        sure = graph.constant("sure", np.ones(1, np.float32))
        link = _Link(op.Unsqueeze(hidden, [0]), op.Unsqueeze(words, [0]), sure, self.rule.begin_drafts())
        found: list[list[ir.Value]] = []
        for k, (head, cache) in enumerate(zip(self.heads.heads, caches, strict=True)):
            assert isinstance(head, MTPHead)
            enough = op.GreaterOrEqual(link.confidence, min_confidence)
            link, outputs = self._head(op.And(op.Greater(num_drafts, [k]), enough), k, head, cache, link)
            found.append(outputs)
        guesses, *probs = ([op.Concat(*each, axis=0) if len(each) > 1 else each[0]] for each in zip(*found, strict=True))
        return guesses[0], [value for each in probs for value in each]

    def _head(self, wanted: ir.Value, k: int, head: MTPHead, cache: Cache, link: _Link) -> tuple[_Link, list[ir.Value]]:
        """Runs head k + 1 where it is `wanted`; else what went in goes on. Also its draft [1] and, sampled, what it was drawn
        from [1, V]; or none [0]."""
        spec = self.graph.spec
        vocab, sampled = spec.dims.vocab_size, bool(link.carried)
        kinds: list[Kind] = [(I64, [f"n{k}"]), *[(F32, [f"n{k}", vocab])] * sampled]
        kinds += [(spec.dtype, [1, "W", spec.dims.hidden_size]), (I64, [1, "W"]), (F32, [1])]
        kinds += [(spec.dtype, list(cache.past_key.shape))] * 2  # type: ignore[arg-type]
        kinds += [(value.dtype, list(value.shape)) for value in link.carried]  # type: ignore[arg-type, misc]

        def skip(op: OpBuilder) -> list[ir.Value]:
            nothing = [self.graph.constant("no_draft", np.zeros(0, np.int64))]
            nothing += [self.graph.constant("no_rows", np.zeros((0, vocab), np.float32))] * sampled
            kept = [link.state, link.words, link.confidence, cache.past_key, cache.past_value, *link.carried]
            return [op.Identity(value) for value in (*nothing, *kept)]

        outputs = branches(self.graph.op, wanted, f"head_{k}", kinds, lambda op: self._run_head(op, k, head, cache, link), skip)
        own, rest = list(outputs[: 1 + sampled]), outputs[1 + sampled :]
        state, words, confidence, cache.key, cache.value, *carried = rest
        return _Link(state, words, confidence, carried), own

    def _run_head(self, op: OpBuilder, k: int, head: MTPHead, cache: Cache, link: _Link) -> list[ir.Value]:
        graph = within(self.graph, op)
        inner = Cache(cache.past_key, cache.past_value)
        sums = head(op, link.state, self.base.model.embed_tokens(op, link.words), inner, self.positions)
        raw, normed = head.final_norm(self.base)(op, *sums)
        logits = draft_logits(op, self.base, self.heads, op.Gather(normed, [-1], axis=-2))
        rule = within(self.rule, op)
        rule.graph = graph
        guess, certain, carried, probs = rule.drafted(logits, link.carried, k)
        words = op.Concat(op.Slice(link.words, [1], [END], [1]), op.Unsqueeze(guess, [0]), axis=1)
        state = normed if graph.spec.hidden_source == "postnorm" else raw
        confidence = op.Mul(link.confidence, certain)
        return [guess, *probs, state, words, confidence, inner.key, inner.value, *carried]


class GreedyRound(GreedyRule):
    def __init__(self, graph: Graph, known: ir.Value, first: ir.Value, past_length: ir.Value):
        super().__init__(graph, known, first)
        self.graph = graph
        self.probs: list[ir.Value] = []

    def begin_drafts(self) -> list[ir.Value]:
        """What drafts carry from one to the next: nothing."""
        return []

    def drafted(self, logits: ir.Value, carried: list[ir.Value], k: int) -> Draft:
        """The best draft, from a head's logits [1, 1, V or D]."""
        op = self.op
        wide = op.Cast(logits, to=F32)
        apart = op.Exp(op.Sub(wide, op.ReduceMax(wide, [-1], keepdims=1)))
        certain = op.Reciprocal(op.ReduceSum(apart, [-1], keepdims=0))
        return op.Squeeze(best_draft(self.graph, logits), [0]), op.Squeeze(certain, [0]), [], []


class SampledRound(SampledRule):
    """Drafts of the host's are certain: they are accepted with the probability that the main head gives them."""

    def __init__(self, graph: Graph, known: ir.Value, first: ir.Value, past_length: ir.Value):
        self.known, self.first = known, first
        super().__init__(graph, known, first, past_length)

    def read_probs(self) -> None:
        op = self.op
        drafts = op.Slice(self.known, op.Add(self.first, [1]), [END])
        depth = self.graph.constant("vocab_size", np.array(self.graph.spec.dims.vocab_size, np.int64))
        self.probs = [op.OneHot(drafts, depth, self.graph.constant("certain", np.array([0, 1], np.float32)), axis=-1)]

    def probs_of(self, drafted: ir.Value) -> ir.Value:
        return self.probs[0] if len(self.probs) == 1 else self.op.Concat(*self.probs, axis=0)

    def begin_drafts(self) -> list[ir.Value]:
        """The last CONTEXT tokens, x_P among them, [CONTEXT]."""
        return [self._with(self.sampler.recent, self.op.Slice(self.known, [0], [1]))]

    def drafted(self, logits: ir.Value, carried: list[ir.Value], k: int) -> Draft:
        """A draft for position P + k + 1."""
        token, q = self.draw(logits, carried[0], self.op.Add(self.past, [k + 1]))
        return token, self.op.ReduceMax(q, [-1], keepdims=0), [self._with(carried[0], token)], [q]


def within(thing: Any, op: OpBuilder) -> Any:
    """A copy of a Graph or of a rule that writes into the branch of `op`; constants stay in the graph around it."""
    inner = copy(thing)
    inner.op = op
    return inner
