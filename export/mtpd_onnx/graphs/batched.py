"""A decoding round for several texts of different lengths at once (greedy). onnxruntime needs GroupQueryAttention's input
`query_seqlens`, new in 1.32: how many of the right-padded rows of each text are real, 0 for one that has nothing to do."""

import onnx_ir as ir
from onnxscript import OpBuilder

from mtpd_onnx.graphs.builder import (
    END,
    I32,
    I64,
    Graph,
    Spec,
    argmax,
    best_draft,
    cache_inputs,
    cache_outputs,
    draft_logits,
    fused_positions,
)
from mtpd_onnx.graphs.finite import marked
from mtpd_onnx.graphs.flavours import Cache, Fused
from mtpd_onnx.graphs.modules import Base, MTPHead


def build_batched_round(spec: Spec) -> ir.Model:
    """As graphs/round.py, build_round, row by row for B texts; what differs between texts comes from the host.

    tokens [B, S], the first lengths[b] of them real, at positions past_length[b]..; checked [B, R]: rows after which the
    main head is asked; after [B, R]: the tokens there, -1 after the last one; window [B, W]: rows of the heads' window,
    counted from the first row of the tail and relative to the accepted row, window_lengths[b] of them real; last_row
    bool [B, W] marks the last real one, whose number is window_end [B, 1].
    """
    graph = Graph(spec, "batched_round")
    op, k, d = graph.op, spec.num_heads, spec.dims.hidden_size
    base, heads = Base(spec.dims, spec.dtype, Fused()), spec.heads(Fused())
    graph.parameters(base)
    graph.parameters(heads)
    tokens = graph.input("tokens", I64, ["B", "S"])
    lengths = graph.input("lengths", I32, ["B"])
    past_length = graph.input("past_length", I32, ["B"])
    checked = graph.input("checked", I64, ["B", "R"])
    after = graph.input("after", I64, ["B", "R"])
    window = graph.input("window", I64, ["B", "W"])
    window_lengths = graph.input("window_lengths", I32, ["B"])
    last_row = graph.input("last_row", ir.DataType.BOOL, ["B", "W"])
    window_end = graph.input("window_end", I64, ["B", 1])
    hidden_tail = graph.input("hidden_tail", spec.dtype, ["B", k, d])
    token_tail = graph.input("token_tail", I64, ["B", k])
    caches = batched_caches(graph)
    main_caches, head_caches = caches[: spec.dims.num_layers], caches[spec.dims.num_layers :]

    positions = fused_positions(graph, op.Add(past_length, op.Sub(lengths, [1])))
    positions.lengths = lengths
    prenorm, postnorm = base.model(op, tokens, main_caches, positions)
    logits = base.logits(op, rows_of(op, postnorm, checked))
    predicted = argmax(op, logits)  # [B, R]
    wrong = op.Where(op.Equal(predicted, after), END, checked)
    accepted = op.ReduceMin(wrong, [1], keepdims=1)  # [B, 1]
    following = op.GatherElements(predicted, op.Sub(accepted, op.Slice(checked, [0], [1], [1])), axis=1)

    source = postnorm if spec.hidden_source == "postnorm" else prenorm
    rows = op.Concat(hidden_tail, source, axis=1)  # [B, K + S, d]
    known = op.Concat(token_tail, tokens, following, axis=1)  # [B, K + S + 1]
    where = op.Add(window, accepted)
    words = op.Where(last_row, following, op.GatherElements(known, op.Add(where, [1]), axis=1))
    positions.last = op.Add(past_length, op.Cast(op.Squeeze(accepted, [1]), to=I32))
    positions.lengths = window_lengths
    state, guesses = rows_of(op, rows, where), []
    for head, cache in zip(heads.heads, head_caches, strict=True):
        assert isinstance(head, MTPHead)
        raw, normed = head.final_norm(base)(op, *head(op, state, base.model.embed_tokens(op, words), cache, positions))
        end = rows_of(op, normed, window_end)  # [B, 1, d]
        guesses.append(best_draft(graph, draft_logits(op, base, heads, end)))  # [B, 1]
        shifted = op.Concat(op.Slice(words, [1], [END], [1]), op.Slice(words, [-1], [END], [1]), axis=1)
        words = op.Where(last_row, guesses[-1], shifted)
        state = normed if spec.hidden_source == "postnorm" else raw

    tail = op.Add(accepted, list(range(1, k + 1)))  # [B, K]
    graph.output(accepted, "accepted", I64, ["B", 1])
    graph.output(marked(op, predicted, logits), "predicted", I64, ["B", "R"])
    graph.output(guesses[0] if k == 1 else op.Concat(*guesses, axis=1), "drafts", I64, ["B", k])
    graph.output(rows_of(op, rows, tail), "next_hidden_tail", spec.dtype, ["B", k, d])
    graph.output(op.GatherElements(known, tail, axis=1), "next_token_tail", I64, ["B", k])
    cache_outputs(graph, caches, ["B", spec.dims.num_kv_heads, spec.capacity, spec.dims.head_dim])
    return graph.model()


def rows_of(op: OpBuilder, x: ir.Value, rows: ir.Value) -> ir.Value:
    """x [B, n, d], rows int64 [B, m] -> [B, m, d]."""
    return op.GatherND(x, op.Unsqueeze(rows, [2]), batch_dims=1)


def batched_caches(graph: Graph) -> list[Cache]:
    return cache_inputs(graph, "B")
