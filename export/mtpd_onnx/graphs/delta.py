"""Layers with a state: what they keep of a text; and what the recurrence of gated delta nets (arXiv 2412.06464) is given.

A state of a whole text cannot be cut. So it is kept behind fewer positions than were read, with what the layer was given at
those since then. The next run first goes over the ones that the text still has. graphs/recurrent.py, fused.py and
standard.py use it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from onnxscript import OpBuilder

from mtpd_mlx.families.dims import Recurrent
from mtpd_onnx.graphs.history import Taps, tapped

END = (1 << 63) - 1
ROWS, STATE, ANCHOR = "rows", "state", "anchor"  # the names of what is kept
REACH = 64  # positions behind a kept state, at most
EPS = 1e-6  # in the norm of queries and keys


@dataclass
class Recurrence:
    """What one layer keeps: what goes in and, after the block ran, what comes out.

    Fused: rows [1, 1, R, n], what the layer was given at the last R positions, that of p in row p mod R; state [1, H, Dk, Dv]
    behind the first `anchor` positions. Standard: rows [1, P, n] of the whole text, and no state.
    """

    past_rows: ir.Value
    past_state: ir.Value | None = None
    rows: ir.Value | None = None
    state: ir.Value | None = None


@dataclass
class Journal:
    """Of a run over S positions from P on, the layers' states being behind `anchor` positions, P - REACH..P.

    before int64 [P - anchor + k - 1]: rows of the positions that are gone over again, and of those that their convolutions
    see; there [the same, 1]: 1 where the text has such a position, else 0. begun bool [1]: P > 0. again, commit int64 [1]:
    P - anchor, and how many positions from the anchor on the next state is behind. slots int64 [w, 3]: rows of the last w
    positions, which are kept; kept int64 [1]: -w.
    """

    before: ir.Value
    there: ir.Value
    begun: ir.Value
    again: ir.Value
    commit: ir.Value
    slots: ir.Value
    kept: ir.Value


def ring_size(kind: Recurrent) -> int:
    """R: rows of REACH positions, and of those that the first of them sees."""
    return REACH + kind.kernel - 1


def row_size(kind: Recurrent) -> int:
    """n: what the convolution is given, and a delta net's b and a, or a Mamba-2 layer's dt."""
    return kind.channels + (1 if kind.kind == "mamba" else 2) * kind.heads


def journal(graph: Any, tokens: ir.Value, last: ir.Value) -> Journal:
    """Of tokens [S], the last one at position `last` int32 [1]. It adds the input and output that say where states stand.
    `graph`: builder.Graph, of one text on a CPU."""
    op, kind = graph.op, graph.spec.dims.recurrent
    count, ring = op.Shape(tokens), ring_size(kind)
    end = op.Add(op.Cast(last, to=ir.DataType.INT64), [1])  # P + S
    first = op.Sub(end, count)
    begun = op.Greater(first, [0])
    anchor = op.Where(begun, graph.input(f"past_key_values.{ANCHOR}", ir.DataType.INT64, [1]), [0])
    again = op.Sub(first, anchor)
    beyond = op.Where(op.Greater(count, [REACH]), op.Sub(count, [REACH]), [0])
    commit = op.Add(again, beyond)
    before = op.Range(op.Squeeze(op.Sub(anchor, [kind.kernel - 1]), [0]), op.Squeeze(first, [0]), 1)
    there = op.Unsqueeze(op.Cast(op.GreaterOrEqual(before, [0]), to=graph.spec.dtype), [1])
    width = op.Where(op.Less(count, [ring]), count, [ring])
    new = op.Range(op.Squeeze(op.Sub(end, width), [0]), op.Squeeze(end, [0]), 1)
    place = op.Unsqueeze(op.Mod(new, [ring]), [1])
    zeros = op.Sub(place, place)
    graph.output(op.Add(anchor, commit), f"present.{ANCHOR}", ir.DataType.INT64, [1])
    slots = op.Concat(zeros, zeros, place, axis=1)
    return Journal(op.Mod(op.Add(before, [ring]), [ring]), there, begun, again, commit, slots, op.Neg(width))


@dataclass
class DeltaWeights:
    """taps: of the convolution over queries, keys and values; decay_scale [H]: -exp(A_log); dt_bias [H]."""

    taps: Taps
    decay_scale: ir.Value
    dt_bias: ir.Value


@dataclass
class RuleInputs:
    """Of T positions: queries and keys [1, T, H Dk]; values [1, T, H Dv]; log decays and rates [1, T, H] (None: values are
    added to the state as they are); what queries are multiplied by; what is added to the outputs, [1, T, H Dv]."""

    query: ir.Value
    key: ir.Value
    value: ir.Value
    decay: ir.Value
    beta: ir.Value | None
    scale: float
    skip: ir.Value | None = None


def delta_inputs(op: OpBuilder, kind: Recurrent, seen: ir.Value, w: DeltaWeights, flavour: Any) -> RuleInputs:
    """Of rows [1, k - 1 + T, C + 2 H], of which the first k - 1 are only seen by the convolution."""
    heads = kind.heads
    packed, b, a = op.Split(seen, [kind.channels, heads, heads], axis=-1, _outputs=3)
    sizes = [kind.groups * kind.key] * 2 + [heads * kind.value]
    q, k, v = op.Split(convolved(op, kind, packed, w.taps, flavour), sizes, axis=-1, _outputs=3)
    b, a = (op.Slice(each, [kind.kernel - 1], [END], [1]) for each in (b, a))
    decay = op.Mul(w.decay_scale, op.Softplus(op.Add(a, w.dt_bias)))
    q, k = (_of_length_one(op, kind, each) for each in (q, k))
    return RuleInputs(q, k, v, decay, op.Sigmoid(b), kind.key**-0.5)


def convolved(op: OpBuilder, kind: Recurrent, packed: ir.Value, taps: Taps, flavour: Any) -> ir.Value:
    """packed [1, k - 1 + T, C] -> [1, T, C], activated."""
    ends = [*range(1 - kind.kernel, 0), END]
    shifted = op.Concat(*(op.Slice(packed, [j], [end], [1]) for j, end in enumerate(ends)), axis=0)  # [k, T, C]
    out = tapped(op, shifted, taps)
    out.type, out.shape = taps.weights.type, ir.Shape([1, "T", kind.channels])
    return flavour.silu(op, out)


def _of_length_one(op: OpBuilder, kind: Recurrent, x: ir.Value) -> ir.Value:
    """x [1, T, G Dk] -> [1, T, H Dk]: heads of one group share theirs."""
    heads = op.Reshape(x, [1, -1, kind.groups, kind.key])
    length = op.Sqrt(op.Add(op.ReduceSum(op.Mul(heads, heads), [-1], keepdims=1), EPS))
    heads = op.Div(heads, length)
    if kind.heads > kind.groups:
        heads = op.Gather(heads, np.repeat(np.arange(kind.groups), kind.heads // kind.groups).tolist(), axis=2)
    return op.Reshape(heads, [1, -1, kind.heads * kind.key])


Given = Callable[[ir.Value], RuleInputs]


def rows_of(op: OpBuilder, x: RuleInputs, start: ir.Value | list[int], end: ir.Value | list[int]) -> RuleInputs:
    """Those of the positions start..end - 1."""

    def cut(each: ir.Value) -> ir.Value:
        return op.Slice(each, start, end, [1])

    beta = None if x.beta is None else cut(x.beta)
    return RuleInputs(cut(x.query), cut(x.key), cut(x.value), cut(x.decay), beta, x.scale)


def scanned(op: OpBuilder, kind: Recurrent, x: RuleInputs) -> ir.Value:
    """The recurrence from the start of a text, position by position in standard operators: [T, H Dv].
    S_t = g_t S_{t-1} + k_t (beta_t (v_t - g_t S_{t-1}^T k_t))^T, or without rates g_t S_{t-1} + k_t v_t^T;
    y_t = scale S_t^T q_t."""
    heads = kind.heads
    shapes = [[heads, kind.key, 1], [heads, kind.key, 1], [heads, 1, kind.value], [heads, 1, 1], [heads, 1, 1]]
    parts = [each for each in (x.query, x.key, x.value, x.decay, x.beta) if each is not None]
    shapes = shapes[: len(parts)]
    given = [op.Reshape(each, [-1, *shape]) for each, shape in zip(parts, shapes, strict=True)]
    state = op.Expand(op.CastLike([0.0], x.query), [heads, kind.key, kind.value])

    def declared(name: str, shape: list[int]) -> ir.Value:
        return ir.Value(name=f"{name}", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(shape))

    def step(op: OpBuilder, state: ir.Value, *rows: ir.Value) -> list[ir.Value]:
        q, k, v, decay, *beta = rows
        state = op.Mul(state, op.Exp(decay))
        change = v if not beta else op.Mul(op.Sub(v, op.ReduceSum(op.Mul(state, k), [1], keepdims=1)), beta[0])
        state = op.Add(state, op.Mul(k, change))
        return [state, op.Mul(op.ReduceSum(op.Mul(state, q), [1], keepdims=0), x.scale)]

    stem = x.query.name
    names = ["state", "query", "key", "value", "decay", "beta"]
    inside = [declared(f"{stem}.{n}", s) for n, s in zip(names, [[heads, kind.key, kind.value], *shapes], strict=False)]
    outside = [declared(f"{stem}.next", [heads, kind.key, kind.value]), declared(f"{stem}.y", [heads, kind.value])]
    body = op.builder.subgraph(step, inside, outside, name=f"{stem}.step")
    for value in [each for node in body for each in node.outputs if each.name and each not in body.outputs]:
        value.name = f"{stem}.step/{value.name}"
    _, y = op.Scan(state, *given, num_scan_inputs=len(given), body=body, _outputs=2)
    y = op.Reshape(y, [-1, heads * kind.value])
    return y if x.skip is None else op.Add(y, op.Squeeze(x.skip, [0]))
