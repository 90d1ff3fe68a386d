"""Rounds for devices that replay captured runs: drafts of the first heads, or given ones, and their verification in one run.

Called by export/export.py for folders that run on CUDA; runtime/device_rounds.py drives them. Shapes are fixed by the kind of
round, and nothing branches, so every kind can be a CUDA graph. All that a round needs of the text lies on the device (`text`,
`hidden`, the caches), so a round of any kind can follow one of any other, before its results are read. One file for each number
of heads; their sessions share the weights (runtime/shared_weights.py). docs/internals/onnx.md explains every input.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import onnx_ir as ir

from mtpd_onnx.graphs.builder import (
    END,
    I32,
    I64,
    Graph,
    Spec,
    attention_caches,
    cache_outputs,
    draft_chain,
    fused_positions,
    places_of,
    shared_caches,
)
from mtpd_onnx.graphs.finite import marked
from mtpd_onnx.graphs.fused import Fused
from mtpd_onnx.graphs.modules import Base
from mtpd_onnx.graphs.round import GreedyRule, SampledRule, tokens_after
from mtpd_onnx.graphs.sampling import CONTEXT, F32


def device_builders(counts: tuple[int, ...], names: Callable[[int, bool], str]) -> dict[str, Callable[[Spec], ir.Model]]:
    """By file name: the graph of given drafts (0) and of each number of heads in `counts`, greedy and sampled."""
    return {
        names(count, sampled): partial(build_device_round, count=count, sampled=sampled)
        for count in (0, *counts)
        for sampled in (False, True)
    }


def build_device_round(spec: Spec, count: int, sampled: bool = False) -> ir.Model:
    """Before: positions 0..P-1 cached, their tokens in text [C] and h^0 in hidden [C * d]; token [1] = x_P.

    count > 0: the first `count` heads draft behind x_P, over the W positions P-W..P-1 (window [W] = -W..-1), their caches
    beginning at position origin [1]; S = count + 1. count = 0: given [S-1] follow x_P, drafts or a prompt (where S = 1, a
    number that is not looked at). rows [S] = 0..S-1, last_row [1] = S - 1; checked [R]: as in graphs/round.py, all rows where
    count > 0.
    `result` [R+1]: accepted drafts, then the main head's token after each checked row. next_*: the inputs of the next round.
    """
    total, spec = spec.num_heads, replace(spec, num_heads=count)
    graph = Graph(spec, f"device_round_{count}")
    op, d, capacity = graph.op, spec.dims.hidden_size, spec.capacity
    base, heads = Base(spec.dims, spec.dtype, Fused()), spec.heads(Fused())
    graph.parameters(base)
    graph.parameters(heads)
    token = graph.input("token", I64, [1])
    past_length = graph.input("past_length", I32, [1])
    rows = graph.input("rows", I64, ["S"])
    last_row = graph.input("last_row", I32, [1])
    text = graph.input("text", I64, [capacity])
    hidden = graph.input("hidden", spec.dtype, [capacity * d]) if total else None
    past = op.Cast(past_length, to=I64)
    rule = DeviceSampledRule(graph, token, rows, past_length) if sampled else GreedyRule(graph, token, rows)
    caches = shared_caches(graph)
    positions = fused_positions(graph, op.Add(past_length, last_row))
    positions.places = places_of(graph, lambda: (op.Add(past, rows), None))
    main_caches, head_caches = caches[: spec.dims.num_layers], attention_caches(caches[spec.dims.num_layers :])
    if count:
        assert hidden is not None
        window = op.Add(graph.input("window", I64, ["W"]), past)  # [W]: P-W..P-1
        words = op.Concat(op.Gather(text, op.Slice(window, [1], [END])), token, axis=0)  # [W]: x_{s+1}
        state = op.Unsqueeze(op.Gather(op.Reshape(hidden, [-1, d]), window), [0])
        last = op.Sub(op.Sub(past_length, graph.input("origin", I32, [1])), [1])
        if isinstance(rule, DeviceSampledRule):
            rule.begin(token)
        in_window = replace(positions, last=last, spare=None)
        drafts = draft_chain(graph, base, heads, state, op.Unsqueeze(words, [0]), head_caches, in_window, rule.guess)
        tokens, checked = op.Concat(token, op.Squeeze(drafts, [0]), axis=0), rows
    else:
        tokens = op.Gather(op.Concat(token, graph.input("given", I64, ["G"]), axis=0), rows)
        checked = graph.input("checked", I64, ["R"])
    rule.tokens, rule.checked = tokens, checked
    prenorm, postnorm = base.model(op, op.Unsqueeze(tokens, [0]), main_caches, positions)
    asked = postnorm if count else op.Gather(postnorm, checked, axis=1)
    logits = op.Squeeze(base.logits(op, asked), [0])  # [R, V]
    accepted, following, emitted = rule.accept(logits)
    result = op.Sub(accepted, op.Slice(checked, [0], [1]))
    graph.output(op.Concat(result, marked(op, emitted, logits, rule.largest), axis=0), "result", I64, ["R + 1"])
    graph.output(following, "next_token", I64, [1])
    graph.output(op.Cast(op.Add(op.Add(past, accepted), [1]), to=I32), "next_past_length", I32, [1])
    places_of_rows = op.Unsqueeze(op.Add(past, rows), [1])  # [S, 1]
    graph.output(op.ScatterND(text, places_of_rows, tokens), "next_text", I64, [capacity])
    if hidden is not None:
        source = op.Squeeze(postnorm if spec.hidden_source == "postnorm" else prenorm, [0])
        columns = graph.constant("columns", np.arange(d, dtype=np.int64))
        places_of_numbers = op.Unsqueeze(op.Add(op.Mul(places_of_rows, [d]), columns), [2])  # [S, d, 1]
        kept = op.ScatterND(hidden, places_of_numbers, source)  # number by number: CUDA writes a row with one thread
        graph.output(kept, "next_hidden", spec.dtype, [capacity * d])
    rule.outputs()
    cache_outputs(graph, caches)
    return graph.model()


class DeviceSampledRule(SampledRule):
    """Drafts are drawn and verified in one run. Given drafts are certain: the main head's probability of them decides."""

    def read_probs(self) -> None:
        pass

    def begin(self, token: ir.Value) -> None:
        """Before the heads draft behind `token` = x_P."""
        self.context, self.position = self._with(self.sampler.recent, token), self.past

    def probs_of(self, drafted: ir.Value) -> ir.Value:
        """What the drafts behind the rows `drafted` [n] were drawn from, [n, V]."""
        if self.next_probs:
            return self.next_probs[0] if len(self.next_probs) == 1 else self.op.Concat(*self.next_probs, axis=0)
        vocab = np.arange(self.graph.spec.dims.vocab_size, dtype=np.int64)[None]
        drafts = self.op.Unsqueeze(tokens_after(self.op, self.tokens, drafted), [1])
        return self.op.Cast(self.op.Equal(drafts, self.graph.constant("vocabulary", vocab)), to=F32)

    def outputs(self) -> None:
        self.graph.output(self.next_recent, "next_recent", I64, [CONTEXT])
