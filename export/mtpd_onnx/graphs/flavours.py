"""`Fused` and the interface `Flavour`: operations spelt with onnxruntime's fused or with standard ONNX operators.
Called by graphs/modules.py and every graph; the standard flavour is in standard.py.

Both flavours compute the same equations. `Fused` (fused.py): activations [1, S, n], caches of fixed capacity updated in place
by GroupQueryAttention (com.microsoft). `Standard` (standard.py): activations [S, n], caches that grow by concatenation.
"""

from dataclasses import dataclass
from typing import Protocol

import onnx_ir as ir
from onnxscript import OpBuilder

from mtpd_mlx.families.dims import Experts, Layer, Recurrent
from mtpd_onnx.dims import Dims
from mtpd_onnx.graphs.delta import Given, Journal, Recurrence
from mtpd_onnx.graphs.folding import MICROSOFT as MICROSOFT
from mtpd_onnx.graphs.folding import Folding
from mtpd_onnx.graphs.history import History, Places, Taps
from mtpd_onnx.graphs.whole_caches import Whole

# Computed in on CUDA alone (precision.PROVIDERS), where GroupQueryAttention can apply the norms of queries and keys itself.
CUDA_TYPES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


@dataclass
class Cache:
    """Key and value cache of one block: what goes in and, after the block ran, what comes out."""

    past_key: ir.Value
    past_value: ir.Value
    key: ir.Value | None = None
    value: ir.Value | None = None


Kept = Cache | History | Recurrence  # what a block keeps of the positions before


@dataclass
class Spare:
    """A row of zeros that attention computes with a call of one row, so that it sums up as it does for several.

    onnxruntime multiplies one row by the cached values with another kernel than two or more rows, and gets other last bits.
    `rows` int64 [1]: S; `pads` int64 [6]: what Pad adds to [1, S, n], one row where S is 1 and the cache has room for it;
    `last` int32 [1]: the position of the last row, the spare one included. What it leaves in the cache is never looked at.
    `folding`: for layers that need no spare row, because they can fold their heads into rows.
    """

    rows: ir.Value
    pads: ir.Value
    last: ir.Value
    folding: Folding | None = None


@dataclass
class Ragged:
    """Rows of several texts, one text behind the other [T, n], and where they lie where each text has a line of its own.

    rows int64 [B, S]: which of the T rows are those of text b, then any others; places int64 [T, 2]: (b, s) of every row.
    folding: for runs of a single text. whole: on CUDA, what takes the place of GroupQueryAttention.
    """

    rows: ir.Value
    places: ir.Value
    folding: Folding | None = None
    whole: Whole | None = None


@dataclass
class Positions:
    """Which positions the rows of a call are.

    Fused: cos and sin are the whole tables [C, rotary_dim / 2], `last` int32 [B] is the position of each text's last row,
    `total` int32 [] the capacity, `lengths` int32 [B] how many rows of each text are real (None: all). Standard: cos and
    sin are the rows' own [S, rotary_dim / 2], `mask` float [S, cached] is 0 where a row may look and a large negative number
    elsewhere, `rows` int64 [S] are the positions. `local`: cos and sin of sliding layers that have their own. `spare`: None
    where the sums of a single row may end in other bits. `ragged`: activations are [T, n], the rows of B texts. `places`: of
    the rows in the histories of convolutions, fused; `journal`: of delta nets, fused.
    """

    cos: ir.Value
    sin: ir.Value
    last: ir.Value | None = None
    total: ir.Value | None = None
    lengths: ir.Value | None = None
    mask: ir.Value | None = None
    rows: ir.Value | None = None
    local: tuple[ir.Value, ir.Value] | None = None
    spare: Spare | None = None
    ragged: Ragged | None = None
    places: Places | None = None
    journal: Journal | None = None

    def tables(self, layer: Layer) -> tuple[ir.Value, ir.Value] | None:
        """cos and sin of one kind of layer; None where it does not rotate."""
        return {"global": (self.cos, self.sin), "local": self.local, "none": None}[layer.rope]


class Flavour(Protocol):
    """The operations that modules are made of. Both flavours compute the same equations."""

    def linear(self, op: OpBuilder, x: ir.Value, weight: ir.Value, bias: ir.Value | None) -> ir.Value:
        """x W^T + b, W [out, in]."""
        ...

    def rms_norm(self, op: OpBuilder, x: ir.Value, weight: ir.Value, eps: float) -> ir.Value: ...

    def add_norm(self, op: OpBuilder, x: ir.Value, y: ir.Value, weight: ir.Value, eps: float) -> tuple[ir.Value, ir.Value]:
        """(x + y, RMSNorm(x + y))."""
        ...

    def silu(self, op: OpBuilder, x: ir.Value) -> ir.Value: ...

    def gelu(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        """The tanh approximation, as Gemma uses it."""
        ...

    def experts(self, op: OpBuilder, experts: Experts, x: ir.Value, scores: ir.Value, w: "ExpertWeights") -> ir.Value:
        """The mixture of x [.., d] by router scores [.., E]."""
        ...

    def value_norm(self, op: OpBuilder, x: ir.Value, dims: Dims) -> ir.Value:
        """RMSNorm of each head of x [.., heads * head_dim], without weights."""
        ...

    def attention(
        self,
        op: OpBuilder,
        dims: Dims,
        layer: Layer,
        packed: ir.Value,
        norms: "QKNorms | None",
        cache: Cache,
        positions: Positions,
        sinks: ir.Value | None = None,
    ) -> ir.Value:
        """Causal attention of packed [.., q + 2 kv] rows over the cache, which it extends. Returns [.., q]."""
        ...

    def convolution(self, op: OpBuilder, rows: ir.Value, taps: Taps, history: History, positions: Positions) -> ir.Value:
        """Causal convolution of rows [.., n] over the history, which it extends."""
        ...

    def recurrence(
        self, op: OpBuilder, kind: Recurrent, rows: ir.Value, given: Given, kept: Recurrence, positions: Positions
    ) -> ir.Value:
        """The recurrence over rows [.., n] behind what is kept, which it renews. given: what its rule is given, of rows
        [1, k - 1 + T, n]. Returns [.., H Dv]."""
        ...


@dataclass
class ExpertWeights:
    """gate and up, row by row [E, 2 size, d], down [E, d, size], and what is added to their products [E, 2 size], [E, d]."""

    gate_up: ir.Value
    down: ir.Value
    gate_up_bias: ir.Value | None = None
    down_bias: ir.Value | None = None


@dataclass
class QKNorms:
    """Norms of queries and keys: weights [head_dim], or [heads * head_dim] where they go over all heads."""

    q: ir.Value
    k: ir.Value


def widened(op: OpBuilder, x: ir.Value) -> ir.Value:
    """bfloat16 as float32: onnxruntime's CUDA kernels of ArgMax, ReduceMin, ReduceMax, Less and CumSum do not take it."""
    return op.Cast(x, to=ir.DataType.FLOAT) if x.dtype == ir.DataType.BFLOAT16 else x


def packed_sizes(dims: Dims) -> tuple[int, int, int]:
    """Columns of q, k and v in the packed matrix."""
    kv = dims.num_kv_heads * dims.head_dim
    return dims.num_heads * dims.head_dim, kv, kv


def ones(op: OpBuilder, x: ir.Value, dims: Dims) -> ir.Value:
    """[head_dim], of x's type."""
    ones = op.CastLike([1.0] * dims.head_dim, x)
    ones.dtype, ones.shape = x.dtype, ir.Shape([dims.head_dim])
    return ones


def query_growth(op: OpBuilder, rows: ir.Value, growth: tuple[float, int]) -> ir.Value:
    """1 + beta log(1 + floor(position / n)), float32, of `rows` (whole numbers in float32)."""
    beta, n = growth
    return op.Add(op.Mul(op.Log(op.Add(op.Floor(op.Div(rows, float(n))), 1.0)), beta), 1.0)
