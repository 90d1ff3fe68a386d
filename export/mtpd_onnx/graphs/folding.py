"""Attention of a few rows on CPUs, the query heads that share a key head made rows of it: G S rows of KV heads instead of S
rows of G KV heads.

onnxruntime multiplies head by head. Over a long cache a product of one or a few rows is mostly the reading and packing of the
cache, which folding does once per key head instead of once per query head. A row G s + g is query head g of row s. The mask of
GroupQueryAttention lets it see positions up to P + G s + g; `bias` takes away those beyond P + s. Keys and values are padded to
as many rows: what that leaves in the cache is never looked at. G >= 2, so the kernel is the one for several rows, and sums are
the same bits as those of the unfolded rows. Folded or not is an If in every layer, which costs a plain step of a small model 5%
in a short context: only folders of a large capacity have it. fused.py calls it.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from onnxscript import OpBuilder

from mtpd_mlx.families.dims import Layer
from mtpd_onnx.dims import Dims

MICROSOFT = "com.microsoft"
LONG = 2048  # capacity from which a folder can fold
ALONE_FROM, FROM, MOST_ROWS = 256, 512, 32  # from where one row folds, and several do, so many at most (docs/log.md)
HIDDEN = -1e30  # added to scores that must not count


@dataclass
class Folding:
    """wanted bool [1]: whether this run folds; past int64 [1]: P; last int32 [1]: P + G S - 1; pads int64 [6]: what Pad adds to
    keys and values [1, S, n]; bias float [1, 1, G S, C], of one row where this run does not fold."""

    wanted: ir.Value
    past: ir.Value
    last: ir.Value
    pads: ir.Value
    bias: ir.Value


def folding_of(graph: Any, rows: ir.Value, last: ir.Value, alone: ir.Value | None = None) -> Folding | None:
    """For calls of `rows` int64 [1] rows, the last one at position `last` int32 [1]. None where the capacity is below LONG
    or no layer of the model folds. `graph`: builder.Graph; `alone` bool [1]: false where the rows are of several texts, which
    are not folded."""
    op, dims, capacity = graph.op, graph.spec.dims, graph.spec.capacity
    if capacity < LONG or not any(foldable(dims, layer) for layer in dims.layers):
        return None
    group = dims.num_heads // dims.num_kv_heads
    past = op.Sub(op.Cast(last, to=ir.DataType.INT64), op.Sub(rows, [1]))
    end = op.Add(past, op.Mul(rows, [group]))
    far = op.GreaterOrEqual(past, op.Where(op.Equal(rows, [1]), [ALONE_FROM], [FROM]))
    wanted = op.And(op.LessOrEqual(end, [capacity]), op.And(far, op.LessOrEqual(rows, [MOST_ROWS])))
    wanted = wanted if alone is None else op.And(wanted, alone)
    count = op.Mul(op.Where(wanted, rows, [1]), [group])
    seen = op.Add(past, op.Div(op.Range(0, op.Squeeze(count, [0]), 1), [group]))  # [G S]: P + s
    columns = graph.constant("columns", np.arange(capacity, dtype=np.int64))
    scores = [graph.constant(f"score.{name}", np.array(x, np.float32)) for name, x in (("kept", 0.0), ("hidden", HIDDEN))]
    bias = op.Unsqueeze(op.Where(op.LessOrEqual(columns, op.Unsqueeze(seen, [1])), *scores), [0, 1])
    pads = op.Concat([0, 0, 0, 0], op.Mul(rows, [group - 1]), [0], axis=0)
    return Folding(wanted, past, op.Cast(op.Sub(end, [1]), to=ir.DataType.INT32), pads, bias)


def foldable(dims: Dims, layer: Layer) -> bool:
    """Layers that look at all of the past, of models in which several query heads share a key head."""
    plain = (
        layer.window is None
        and not dims.attention_softcap
        and dims.query_growth is None
        and not (dims.sinks or dims.value_norm)
    )
    whole = layer.rope == "none" or dims.rotary_dim == dims.head_dim
    return plain and whole and dims.num_heads > dims.num_kv_heads


def folded_attention(
    op: OpBuilder,
    dims: Dims,
    rows: tuple[ir.Value, ir.Value, ir.Value],
    past: tuple[ir.Value, ir.Value],
    tables: tuple[ir.Value, ir.Value] | None,
    total: ir.Value,
    folding: Folding,
) -> list[ir.Value]:
    """rows: q [1, S, G KV n], k and v [1, S, KV n], q and k not rotated yet; past: the caches of keys and values. Returns the
    attention's output, of q's shape, and the caches."""
    (q, k, v), heads, size = rows, dims.num_kv_heads, dims.head_dim
    group = dims.num_heads // heads
    if tables is not None:
        rotate = {"interleaved": 0, "_domain": MICROSOFT, "_version": 1}
        q = op.RotaryEmbedding(q, folding.past, *tables, num_heads=dims.num_heads, **rotate)
        k = op.RotaryEmbedding(k, folding.past, *tables, num_heads=heads, **rotate)
    q = _regrouped(op, q, (heads, group, size), heads * size)
    out, keys, values = op.GroupQueryAttention(
        q,
        op.Pad(k, folding.pads),
        op.Pad(v, folding.pads),
        *past,
        folding.last,
        total,
        None,
        None,
        None,
        folding.bias,
        num_heads=heads,
        kv_num_heads=heads,
        scale=dims.attention_scale,
        do_rotary=0,
        _domain=MICROSOFT,
        _version=1,
        _outputs=3,
    )
    return [_regrouped(op, out, (group, heads, size), dims.num_heads * size), keys, values]


def _regrouped(op: OpBuilder, x: ir.Value, heads: tuple[int, int, int], width: int) -> ir.Value:
    """[1, .., a b n] -> rows of [b, a, n] -> [1, .., width]."""
    return op.Reshape(op.Transpose(op.Reshape(x, [-1, *heads]), perm=[0, 2, 1, 3]), [1, -1, width])
