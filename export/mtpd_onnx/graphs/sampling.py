"""`Sampler`: mtpd_mlx.speculative.sampling in ONNX operators, with every random number fed.
Called by the sampled graphs.

CUDA's CumSum adds up one element after the other for each place, so running sums are made of two short ones.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from onnxscript import OpBuilder

from mtpd_mlx.speculative.sampling import ACCEPT, DRAFT, DRAFT_TAIL, KINDS, LARGEST, REPLACE, Sampling
from mtpd_onnx.graphs.branches import branches

F32, I64 = ir.DataType.FLOAT, ir.DataType.INT64
SETTINGS = ("inverse_temperature", "top_p", "min_p", "kept", "repetition_penalty")
CONTEXT = Sampling.repetition_context_size  # tokens that the repetition penalty looks at
NOT_DRAFTED = -1e30  # logit of a token outside the draft vocabulary
LIKELIEST = 1024  # tokens that are put in order first, at least
LIKELY = 64  # the largest top-k that drafts follow on CUDA
END = (1 << 63) - 1
Largest = Callable[[OpBuilder, ir.Value], ir.Value]
Likeliest = Callable[[OpBuilder, ir.Value, int], ir.Value]


def likeliest(op: OpBuilder, logits: ir.Value, count: int) -> ir.Value:
    """logits [n, V] -> the `count` largest of each row in order, [n, count], or all of fewer."""
    assert logits.shape is not None
    ordered: ir.Value = op.TopK(logits, [min(count, int(logits.shape[-1]))], axis=-1, _outputs=2)[0]  # type: ignore[arg-type]
    return ordered


def largest_by_reduction(op: OpBuilder, logits: ir.Value) -> ir.Value:
    """logits [n, V] -> the largest of each row, [n, 1]."""
    return op.ReduceMax(logits, [-1], keepdims=1)


@dataclass
class Distribution:
    """What tokens are drawn from. settings float32 [5] (SETTINGS; top_p 2 and kept V where off), or [n, 5]: of each row.

    branch: the name of a node that puts all tokens in order only where the LIKELIEST, and what is kept of them, do not settle
    what is kept. None: all of them always, for devices whose captured runs do not branch."""

    settings: ir.Value
    vocab: int
    largest_of: Largest = field(default=largest_by_reduction, kw_only=True)
    branch: str | None = field(default=None, kw_only=True)
    largest: ir.Value | None = field(default=None, init=False)  # of each row that `of` was given, [n, 1]

    def setting(self, op: OpBuilder, name: str) -> ir.Value:
        i = SETTINGS.index(name)
        return op.Slice(self.settings, [i], [i + 1], [-1])

    def of(self, op: OpBuilder, logits: ir.Value, contexts: ir.Value) -> ir.Value:
        """logits [n, V], contexts int64 [n, N] -> float32 [n, V]."""
        logits = self._penalised(op, logits, contexts)
        plain = op.Softmax(logits, axis=-1)
        self.largest = self.largest_of(op, logits)
        scaled = op.Mul(op.Sub(logits, self.largest), self.setting(op, "inverse_temperature"))
        return op.Softmax(op.Where(op.GreaterOrEqual(plain, self._least(op, plain)), scaled, [-np.inf]), axis=-1)

    def _least(self, op: OpBuilder, plain: ir.Value) -> ir.Value:
        """The probability of the last token that is kept, of plain [n, V]: [n, 1]."""
        inner = block_size(self.vocab)
        most = inner * -(-LIKELIEST // inner)  # whole blocks: sums are then the same bits as those over all tokens
        if self.branch is None or most >= self.vocab:
            return self._cut(op, plain, self.vocab)[0]
        least, kept = self._cut(op, plain, most)
        whole = self.keeps_all(op)  # [1] or [n, 1]
        open_rows = op.Not(op.Or(whole, op.Less(kept, [float(most)])))
        unsettled = op.Greater(op.ReduceSum(op.Cast(open_rows, to=F32), [0, 1], keepdims=0), 0.0)

        def of_all(op: OpBuilder) -> list[ir.Value]:
            return [self._cut(op, plain, self.vocab)[0]]

        def of_likeliest(op: OpBuilder) -> list[ir.Value]:
            return [op.Identity(least)]

        (found,) = branches(op, unsettled, self.branch, [(F32, ["n", 1])], of_all, of_likeliest)
        return op.Where(whole, [0.0], found)

    def _cut(self, op: OpBuilder, plain: ir.Value, most: int) -> tuple[ir.Value, ir.Value]:
        """That among the `most` likeliest tokens, and how many are kept of these, float32; both [n, 1]."""
        ordered, _ = op.TopK(plain, [most], axis=-1, _outputs=2)
        ordered.dtype = F32
        above = op.Sub(running_sum(op, ordered, most, block_size(self.vocab)), ordered)
        count = op.Min(
            self._count(op, op.Less(above, self.setting(op, "top_p"))),
            self._count(op, op.GreaterOrEqual(ordered, op.Mul(op.Slice(ordered, [0], [1], [1]), self.setting(op, "min_p")))),
            self.setting(op, "kept"),
        )
        last = op.Cast(op.Sub(op.Max(count, [1.0]), [1.0]), to=I64)
        return op.GatherElements(ordered, last, axis=-1), count

    def keeps_all(self, op: OpBuilder) -> ir.Value:
        """Whether no token is left out, bool [1] or [n, 1]."""
        unlimited = op.And(op.Greater(self.setting(op, "top_p"), [1.0]), op.LessOrEqual(self.setting(op, "min_p"), [0.0]))
        return op.And(unlimited, op.GreaterOrEqual(self.setting(op, "kept"), [float(self.vocab)]))

    def _penalised(self, op: OpBuilder, logits: ir.Value, contexts: ir.Value) -> ir.Value:
        logits = op.Cast(logits, to=F32)
        penalty, seen = self.setting(op, "repetition_penalty"), op.GatherElements(logits, contexts, axis=-1)
        changed = op.Where(op.Less(seen, [0.0]), op.Mul(seen, penalty), op.Div(seen, penalty))
        penalised: ir.Value = op.ScatterElements(logits, contexts, changed, axis=-1)
        penalised.dtype, penalised.shape = F32, ir.Shape([None, self.vocab])
        return penalised

    @staticmethod
    def _count(op: OpBuilder, which: ir.Value) -> ir.Value:
        """bool [n, V] -> float32 [n, 1]; whole numbers below 2^24 are exact."""
        return op.ReduceSum(op.Cast(which, to=F32), [-1], keepdims=1)


@dataclass
class Sampler(Distribution):
    """The rule of one text, with the inputs of its graph: uniforms float32 [U, 3] by position of the text, recent int64 [N]:
    the tokens at positions P-N..P-1 (the prompt's first one where there are none). likeliest_of: the largest of
    logits float32 [n, V] in order, [n, count], for devices where a sort of all takes long."""

    uniforms: ir.Value
    recent: ir.Value
    likeliest_of: Likeliest | None = field(default=None, kw_only=True)

    def of_drafts(self, op: OpBuilder, logits: ir.Value, contexts: ir.Value) -> ir.Value:
        """As `of`, for a head's logits. With `likeliest_of` without a sort of all, and nearly so (sampling.draft_floor); top-k
        counts up to LIKELY."""
        if self.likeliest_of is None:
            return self.of(op, logits, contexts)
        logits, kept = self._penalised(op, logits, contexts), self.setting(op, "kept")
        ordered = self.likeliest_of(op, logits, LIKELY)
        largest = op.Slice(ordered, [0], [1], [1])
        floor = op.Max(self.setting(op, "min_p"), op.Mul(op.Sub([1.0], self.setting(op, "top_p")), [DRAFT_TAIL]))
        last = op.Cast(op.Sub(op.Min(kept, [float(min(LIKELY, self.vocab))]), [1.0]), to=I64)
        limit = op.Where(op.Greater(kept, [float(LIKELY)]), [-np.inf], op.Gather(ordered, last, axis=1))
        least = op.Max(op.Add(largest, op.Log(floor)), limit)
        below = op.Mul(op.Sub(logits, largest), self.setting(op, "inverse_temperature"))
        return op.Softmax(op.Where(op.GreaterOrEqual(logits, least), below, [-np.inf]), axis=-1)

    def uniform(self, op: OpBuilder, positions: ir.Value, kind: int) -> ir.Value:
        """positions int64 [n] -> float32 [n]."""
        assert kind < KINDS
        return op.Squeeze(op.Slice(op.Gather(self.uniforms, positions), [kind], [kind + 1], [1]), [1])

    def draw(self, op: OpBuilder, weights: ir.Value, u: ir.Value) -> ir.Value:
        """The first token at which the running sum of weights [1, V] exceeds u [1] times its end, int64 [1]."""
        size = block_size(self.vocab)
        blocks, _ = in_blocks(op, weights, self.vocab, size)
        blocks = op.Squeeze(blocks, [0])  # [A, B]
        ends = op.CumSum(op.ReduceSum(blocks, [1], keepdims=0), 0)  # [A]
        target = op.Mul(u, op.Slice(ends, [-1], [END]))
        block = self._place(op, ends, target)
        before = op.Gather(op.Concat([0.0], ends, axis=0), block)
        inner = op.CumSum(op.Squeeze(op.Gather(blocks, block), [0]), 0)  # [B]
        rest = op.Min(op.Sub(target, before), op.Mul(op.Slice(inner, [-1], [END]), [LARGEST]))
        return op.Add(op.Mul(block, [size]), self._place(op, inner, rest))

    @staticmethod
    def _place(op: OpBuilder, running: ir.Value, target: ir.Value) -> ir.Value:
        """How many of the running sums [n] are at most target [1], int64 [1]."""
        return op.Cast(op.ReduceSum(op.Cast(op.LessOrEqual(running, target), to=F32), [0], keepdims=1), to=I64)

    def accepts(self, op: OpBuilder, p: ir.Value, q: ir.Value, drafts: ir.Value, positions: ir.Value) -> ir.Value:
        """Which drafts int64 [m] at these positions are kept, bool [m]; p, q [m, V]."""
        chosen = op.Unsqueeze(drafts, [1])
        p, q = (op.Squeeze(op.GatherElements(x, chosen, axis=-1), [1]) for x in (p, q))
        return op.Less(op.Mul(self.uniform(op, positions, ACCEPT), q), p)

    def replace(self, op: OpBuilder, p: ir.Value, q: ir.Value, position: ir.Value) -> ir.Value:
        """A draw from max(0, p - q), or from p where nothing is left; p, q [1, V]; int64 [1]."""
        left = op.Max(op.Sub(p, q), [0.0])
        some = op.Greater(op.ReduceSum(left, [-1], keepdims=1), [0.0])
        return self.draw(op, op.Where(some, left, p), self.uniform(op, position, REPLACE))

    def draft(self, op: OpBuilder, q: ir.Value, position: ir.Value) -> ir.Value:
        return self.draw(op, q, self.uniform(op, position, DRAFT))


def block_size(size: int) -> int:
    """About the root of size."""
    return math.isqrt(size - 1) + 1


def in_blocks(op: OpBuilder, x: ir.Value, size: int, inner: int) -> tuple[ir.Value, int]:
    """[n, size] -> ([n, A, inner], A), zeros at the end."""
    outer = -(-size // inner)
    if outer * inner > size:
        x = op.Pad(x, [0, 0, 0, outer * inner - size])
    return op.Reshape(x, [-1, outer, inner]), outer


def running_sum(op: OpBuilder, x: ir.Value, size: int, inner: int | None = None) -> ir.Value:
    """Inclusive running sum along the last axis of [n, size], in blocks of `inner`."""
    inner = inner or block_size(size)
    blocks, outer = in_blocks(op, x, size, inner)
    within = op.CumSum(blocks, 2)
    ends = op.Slice(within, [-1], [END], [2])  # [n, A, 1]
    sums = op.Reshape(op.Add(within, op.CumSum(ends, 1, exclusive=1)), [-1, inner * outer])
    return sums if inner * outer == size else op.Slice(sums, [0], [size], [1])
