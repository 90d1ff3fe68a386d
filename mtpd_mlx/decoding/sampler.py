"""`Sampled`: lossless speculative sampling in MLX operations. Its oracle: mtpd_mlx.speculative.sampling.
Called by decoding/open.py.

Nothing is read: random numbers lie in a table by position of the text, and positions may be arrays.
"""

import math
from collections.abc import Sequence

import numpy as np

from mtpd_mlx.decoding.token_rules import Position, leading, rows_from, spread
from mtpd_mlx.model.runtime import mx, on_cpu
from mtpd_mlx.speculative.sampling import ACCEPT, DRAFT, KINDS, LARGEST, REPLACE, Sampling, draft_floor, uniforms

EXCLUDE = KINDS  # the column of the table that decides where XTC applies


class Sampled:
    """`positions`: of the longest text, drafts beyond it included. draft_tokens [D]: the heads' vocabulary, if they have one.
    xtc_special_tokens: never excluded (mlx_lm: line break and end of text)."""

    keeps_drafts = True

    def __init__(
        self,
        options: Sampling,
        vocab_size: int,
        positions: int,
        draft_tokens: mx.array | None = None,
        xtc_special_tokens: Sequence[int] = (),
    ):
        if options.kept > vocab_size:
            raise ValueError(f"--top-k: got {options.top_k}, expected at most {vocab_size} (the vocabulary)")
        self.options = options
        self.context = options.repetition_context_size if options.repetition_penalty != 1 else 0
        self._vocab, self._positions, self._ids = vocab_size, positions, draft_tokens
        self._special = tuple(xtc_special_tokens)
        self._rng = np.random.default_rng(options.seed)
        # one graph of many small operations; on a CPU it would need a compiler
        self._pick = self._pick_from if on_cpu() else mx.compile(self._pick_from)

    def new_table(self) -> mx.array | None:
        """float32 [positions, 4]: the three columns of sampling.uniforms, and EXCLUDE."""
        numbers = uniforms(self._positions, self._rng)
        return mx.array(np.concatenate([numbers, uniforms(self._positions, self._rng)[:, :1]], axis=1))

    def first(self, logits: mx.array, position: Position, context: mx.array | None, table: mx.array | None) -> mx.array:
        assert table is not None
        return self._pick(logits, rows_from(table, position, 1), *(() if context is None else (context,)))

    def _pick_from(self, logits: mx.array, row: mx.array, context: mx.array | None = None) -> mx.array:
        return draw(self._weights(logits, context, row)[0], row[0, REPLACE])[None]

    def verify(
        self,
        logits: mx.array,
        drafts: mx.array,
        position: Position,
        contexts: mx.array | None,
        table: mx.array | None,
        kept: mx.array | None,
    ) -> tuple[mx.array, mx.array]:
        assert table is not None
        if not drafts.size:
            return self.first(logits, position, contexts, table), mx.array(0, mx.int32)
        assert kept is not None
        rows = rows_from(table, position, logits.shape[0])
        return accept(self._weights(logits, contexts, rows), kept, drafts, rows)

    def draft(
        self, logits: mx.array, position: Position, context: mx.array | None, table: mx.array | None
    ) -> tuple[mx.array, mx.array | None]:
        assert table is not None
        if self._ids is not None and logits.shape[-1] != self._vocab:
            logits = spread(logits, self._ids, self._vocab)
        row = rows_from(table, position, 1)
        quick = draft_floor(self.options)
        weights = self._weights(logits, context, row) if quick is None else likely(logits, self.options, quick, context)
        return draw(weights[0], row[0, DRAFT])[None], weights

    def _weights(self, logits: mx.array, contexts: mx.array | None, rows: mx.array) -> mx.array:
        excluded = rows[:, EXCLUDE] < self.options.xtc_probability if self.options.xtc_probability else None
        return probabilities(logits, self.options, contexts, excluded, self._special)


def probabilities(
    logits: mx.array,
    options: Sampling,
    contexts: mx.array | None = None,
    excluded: mx.array | None = None,
    special: Sequence[int] = (),
) -> mx.array:
    """float32 [n, V]: the distribution that a token is drawn from, as in speculative/sampling.py.

    logits [n, V], contexts [n, N], excluded bool [n].
    """
    logits = _penalise(logits, options, contexts)
    scaled = (logits - logits.max(-1, keepdims=True)) * options.inverse_temperature
    if not truncates(options):
        return mx.softmax(scaled, axis=-1)
    return mx.softmax(
        mx.where(_may_be_drawn(mx.softmax(logits, axis=-1), options, excluded, special), scaled, -mx.inf), axis=-1
    )


def likely(logits: mx.array, options: Sampling, floor: float, contexts: mx.array | None = None) -> mx.array:
    """float32 [n, V]: `probabilities` without a sort (sampling.draft_floor)."""
    logits = _penalise(logits, options, contexts)
    below = logits - logits.max(-1, keepdims=True)
    return mx.softmax(mx.where(below >= math.log(floor), below * options.inverse_temperature, -mx.inf), axis=-1)


def _penalise(logits: mx.array, options: Sampling, contexts: mx.array | None) -> mx.array:
    logits = logits.astype(mx.float32)
    if contexts is None or options.repetition_penalty == 1:
        return logits
    contexts = contexts.astype(mx.int32)
    seen = mx.take_along_axis(logits, contexts, axis=-1)
    penalised = mx.where(seen < 0, seen * options.repetition_penalty, seen / options.repetition_penalty)
    return mx.put_along_axis(logits, contexts, penalised, axis=-1)


def truncates(options: Sampling) -> bool:
    """False where every token may be drawn: then nothing has to be sorted."""
    return 0 < options.top_p < 1 or options.min_p > 0 or options.kept > 0 or options.xtc_probability > 0


def _may_be_drawn(plain: mx.array, options: Sampling, excluded: mx.array | None, special: Sequence[int]) -> mx.array:
    """bool [n, V] of probabilities [n, V]. Tokens as probable as the last one kept are kept."""
    ordered = _descending(plain)
    count = mx.full((plain.shape[0], 1), plain.shape[-1])
    if 0 < options.top_p < 1:
        above = mx.cumsum(ordered, axis=-1) - ordered
        count = mx.minimum(count, (above < options.top_p).sum(-1, keepdims=True))
    if options.min_p > 0:
        count = mx.minimum(count, (ordered >= options.min_p * ordered[:, :1]).sum(-1, keepdims=True))
    if excluded is None and options.kept:
        count = mx.minimum(count, options.kept)
    allowed = plain >= _at(ordered, mx.maximum(count, 1) - 1)
    if excluded is None:
        return allowed
    allowed = allowed & ~_excluded(mx.where(allowed, plain, 0), options.xtc_threshold, excluded, special)
    if not options.kept:
        return allowed
    limit = mx.minimum(allowed.sum(-1, keepdims=True), options.kept)
    return allowed & (plain >= _at(_descending(mx.where(allowed, plain, -1)), limit - 1))


def _excluded(left: mx.array, threshold: float, rows: mx.array, special: Sequence[int]) -> mx.array:
    """XTC: which tokens of left [n, V] go, bool [n, V]: the likely ones but the least probable of them, in the rows [n]."""
    shares = left / left.sum(-1, keepdims=True)
    least = mx.where(shares > threshold, shares, mx.inf).min(-1, keepdims=True)
    out = (shares > least) & rows[:, None]
    if special:
        out = out & ~mx.put_along_axis(mx.zeros(left.shape[-1:], mx.bool_), mx.array(list(special)), mx.array(True), axis=0)
    return out


def _descending(rows: mx.array) -> mx.array:
    return mx.sort(rows, axis=-1)[:, ::-1]


def _at(rows: mx.array, places: mx.array) -> mx.array:
    return mx.take_along_axis(rows, places.astype(mx.int32), axis=-1)


def draw(weights: mx.array, u: mx.array) -> mx.array:
    """The token [] where the running sum of weights [V] first exceeds u times its end; never one of weight 0."""
    running = mx.cumsum(weights)
    target = mx.minimum(u, LARGEST) * running.max()
    return mx.argmax((running > target) & (weights > 0)).astype(mx.uint32)


def accept(p: mx.array, q: mx.array, drafts: mx.array, table: mx.array) -> tuple[mx.array, mx.array]:
    """(tokens [m+1], accepted count []): sampling.accept_sampled. p [m+1, V], q [m, V], drafts [m], table [m+1, 4]."""
    m = drafts.size
    chosen = drafts.astype(mx.int32)[:, None]
    pd, qd = (mx.take_along_axis(x, chosen, axis=-1)[:, 0] for x in (p[:m], q))
    count = leading(table[:m, ACCEPT] * qd < pd)
    own = rows_from(p, count, 1)[0]
    left = mx.maximum(own - rows_from(mx.concatenate([q, mx.zeros_like(own)[None]]), count, 1)[0], 0)
    token = draw(mx.where(left.sum() > 0, left, own), rows_from(table[:, REPLACE], count, 1)[0])
    padded = mx.concatenate([drafts.astype(mx.uint32), token[None]])
    return mx.where(mx.arange(m + 1) < count, padded, token), count
