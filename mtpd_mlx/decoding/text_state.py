"""`HostState`: the state of one text in mlx-lm's own caches (prefill, steps, drafts of the next round).
Called by every way of decoding.

Used by every way of decoding: rounds over growing caches go on with it, rounds over fixed buffers start from it and return
to it. Here the host knows all lengths. Shapes: d hidden size, V vocabulary, D draft vocabulary, K drafts per round, N tokens
that the sampling rule looks back at.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mtpd_mlx.decoding.draft_chain import draft_chain, fill_chain, head_logits
from mtpd_mlx.decoding.rewind import Marks, arrays_of, check_trimmable, reach_of, trim_to
from mtpd_mlx.decoding.row_by_row import Pass, row_by_row, whole_pass
from mtpd_mlx.decoding.token_rules import Rule, contexts_of, spread
from mtpd_mlx.model.base import Base
from mtpd_mlx.model.finite import marked, type_name
from mtpd_mlx.model.heads import MTPHeads
from mtpd_mlx.model.recurrent.cache import Arrays
from mtpd_mlx.model.runtime import mx
from mtpd_mlx.options.decode import DecodingConfig
from mtpd_mlx.speculative.cancel import cancel_point
from mtpd_mlx.speculative.finite import check_tokens

PREFILL_CHUNK = 2048  # as in mlx_lm.generate: other chunks would round differently
LogitsProcessor = Callable[[mx.array, mx.array], mx.array]  # (all tokens so far, logits [1, V]) -> logits [1, V]


@dataclass(frozen=True)
class KVOptions:
    """Quantised KV caches, as in mlx_lm.generate. bits None: not quantised."""

    bits: int | None = None
    group_size: int = DecodingConfig.kv_group_size
    start: int = DecodingConfig.quantized_kv_start


@dataclass
class Model:
    """What decodes: base, the first `num_draft_tokens` heads, and the rule that turns logits into tokens.

    `exact` verifies with the kernels of single-token passes (row_by_row.py). `heads` None: plain decoding.
    """

    base: Base
    heads: MTPHeads | None
    num_draft_tokens: int
    rule: Rule
    exact: bool = False
    kv: KVOptions = KVOptions()
    logits_processors: tuple[LogitsProcessor, ...] = ()
    windows: bool = False  # sliding layers keep their window alone (model/window_cache.py)

    def __post_init__(self) -> None:
        self.verify_pass: Pass = row_by_row(self.base) if self.exact else whole_pass(self.base)
        self.plain_pass: Pass = whole_pass(self.base)
        self.head_logits = None if self.heads is None else head_logits(self.base, self.heads)

    def check(self, tokens: Sequence[int], after: int) -> None:
        """NotFiniteError where one of the tokens that were read, the first of them behind `after` tokens, is none."""
        check_tokens(tokens, after, type_name(self.base.dtype))

    def processed(self, logits: mx.array, before: Sequence[int], tokens: mx.array) -> mx.array:
        """logits [n, V] after each of `tokens` [n], which follow `before`: what the processors make of them."""
        if not self.logits_processors:
            return logits
        history = mx.concatenate([mx.array(list(before), mx.uint32), tokens.astype(mx.uint32)])
        rows = []
        for j in range(logits.shape[0]):
            row, seen = logits[j : j + 1], history[: len(before) + tokens.size - logits.shape[0] + j + 1]
            for process in self.logits_processors:
                row = process(seen, row)
            rows.append(row)
        return mx.concatenate(rows)


class HostState:
    """One text: what is cached, the token after it, and the drafts behind that token.

    tokens: ids of positions 0..length-1, which base and heads have cached.
    caches: one mlx-lm cache per base layer, keys and values [1, kv heads, length, head_dim].
    head_caches: the same, one per drafting head; an entry is final once its token is (docs/architecture.md).
    next: uint32 [1], the token at position `length`, chosen but not cached. None before prefill.
    chosen: int32 [1], the same as `force` chose it, marked where the logits were not finite: what the host reads.
    drafts: uint32 [K], what the heads expect at positions length+1..length+K. None without heads or before prefill.
    tail: [<= rows_kept, d], the cascade's input at the last positions, from which the next window starts.
    kept: [K, V], what each draft was drawn from, where the rule needs it to accept (sampling); else None.
    table: what the sampling rule drew for the whole text, or None (greedy).

    rows_kept: K, or more where windows are wider.

    next, chosen, drafts, tail and kept are lazy MLX arrays: reading them waits for the device.
    """

    def __init__(self, model: Model, rows_kept: int | None = None):
        self.model, self.rows_kept = model, model.num_draft_tokens if rows_kept is None else rows_kept
        self.table: mx.array | None = None
        self._marks = Marks()
        self.clear()

    def clear(self) -> None:
        """An empty text with new caches. ValueError where a cache of this base cannot be rewound."""
        self.tokens: list[int] = []
        self.caches: list[Any] = self.model.base.make_cache(windows=self.model.windows)
        self.head_caches: list[Any] = self.model.base.make_cache(self.model.num_draft_tokens)
        check_trimmable(self.caches)
        self._marks.clear()
        self.tail: mx.array | None = None
        self.next: mx.array | None = None
        self.chosen: mx.array | None = None
        self.drafts: mx.array | None = None
        self.kept: mx.array | None = None
        self._begun = False

    def restore(self, tokens: list[int], caches: list[Any], head_caches: list[Any]) -> None:
        """Goes on with a text that was cached before: `tokens` [length] and their entries in both kinds of caches."""
        self.clear()
        self.tokens, self.caches, self.head_caches = list(tokens), caches, head_caches
        self.table, self._begun = self.model.rule.new_table(), True

    @property
    def length(self) -> int:
        return len(self.tokens)

    def prefill(self, tokens: Sequence[int]) -> None:
        """Caches `tokens` [n >= 1] behind what is there, as mlx_lm.generate does: all but the last in chunks, the last one
        by itself, so that logits round alike. Sets `next` and `drafts`."""
        if not self._begun:
            self.table, self._begun = self.model.rule.new_table(), True
        self.fill(tokens)
        self.force(tokens[-1:])

    def fill(self, tokens: Sequence[int]) -> None:
        """Caches all of `tokens` [n >= 1] but the last one."""
        for start in range(0, len(tokens) - 1, PREFILL_CHUNK):
            cancel_point()
            chunk = tokens[start : min(start + PREFILL_CHUNK, len(tokens) - 1)]
            self._fill(chunk, tokens[start + len(chunk) :])

    def _fill(self, chunk: Sequence[int], following: Sequence[int]) -> None:
        """Caches `chunk`; the text goes on with `following`, so that only its last rows can lack a token."""
        model = self.model
        hidden = model.base.trunk(mx.array([list(chunk)]), self.caches)
        self.tokens.extend(int(t) for t in chunk)
        if model.num_draft_tokens:
            self._fill_heads(hidden, model.base.norm(hidden), following)
        self.quantise()
        mx.eval(hidden, arrays_of(self.caches))
        self._marks.add(self.caches)
        mx.clear_cache()

    def _fill_heads(self, hidden: mx.array, normed: mx.array, following: Sequence[int]) -> None:
        """The heads' caches of the last n positions: hidden and normed [1, n, d]."""
        model, k = self.model, self.model.num_draft_tokens
        assert model.heads is not None
        rows = self.rows(hidden, normed)  # [min(rows_kept, past) + n, d]
        window = hidden.shape[1] + min(k, self.length - hidden.shape[1])
        start = self.length - window
        known = [*self.tokens[start + 1 :], *following[:k]]
        known += [0] * (window + k - 1 - len(known))  # rows without a token yet are run again (`force`)
        trim_to(self.head_caches, start)
        last = fill_chain(model.base, model.heads, rows[-window:][None], mx.array([known]), self.head_caches)
        self.tail = rows[-self.rows_kept :]
        mx.eval(last)

    def rows(self, hidden: mx.array, normed: mx.array) -> mx.array:
        """hidden (before the final norm) and normed, both [1, n, d], of the last n positions -> the cascade's input
        [<= rows_kept + n, d] there and at the positions of `tail` before them."""
        assert self.model.heads is not None
        rows = self.model.heads.source(self.model.base, hidden, normed)[0]
        return rows if self.tail is None else mx.concatenate([self.tail, rows])

    def force(self, tokens: Sequence[int]) -> None:
        """Caches a few known tokens [n >= 1] in one pass and drafts behind them."""
        model = self.model
        array = mx.array(list(tokens))
        run = model.plain_pass if len(tokens) == 1 else model.verify_pass
        hidden, normed, logits = run(array[None], self.caches)
        before = list(self.tokens)
        self.tokens.extend(int(t) for t in tokens)
        logits = model.processed(logits[-1:], before, array)
        self.next = model.rule.first(logits, self.length, self.context(), self.table)
        self.quantise()
        self.chosen = marked(self.next, logits)
        mx.async_eval(self.next, self.chosen)
        if model.num_draft_tokens:
            self._after(hidden, normed)

    def _after(self, hidden: mx.array, normed: mx.array) -> None:
        """Drafts behind a pass over the last n tokens, whose states [1, n, d] these are."""
        self.draft(self.rows(hidden, normed))
        mx.async_eval(self.drafts)

    def read_next(self) -> int:
        """The token that `force` chose: waits for it. NotFiniteError where its logits were not finite."""
        assert self.chosen is not None
        token = read_token(self.chosen)
        self.model.check([token], self.length)
        return token

    def context(self) -> mx.array | None:
        """uint32 [1, N]: the last tokens, which penalties look at; None where the rule looks at none."""
        size = self.model.rule.context
        return self.recent(size)[None] if size else None

    def recent(self, size: int) -> mx.array:
        """uint32 [size]: the last tokens, the text's first one repeated where there are fewer."""
        held = self.tokens[-size:] if size else []
        return mx.array([self.tokens[0]] * (size - len(held)) + held, mx.uint32)

    def drafting(self) -> tuple[Callable[[int, mx.array], mx.array], list[mx.array]]:
        """How the rule makes a draft of each head's logits behind `next` (depth, logits -> token), and what it keeps of each,
        which fills while drafts are made."""
        assert self.next is not None
        model, kept, size = self.model, list[mx.array](), self.model.rule.context
        chosen, recent = [self.next.astype(mx.uint32)], self.recent(size) if size else None

        def choose(depth: int, logits: mx.array) -> mx.array:
            so_far = mx.concatenate(chosen)
            context = None if recent is None else contexts_of(recent, so_far, size)
            if model.logits_processors:
                logits = model.processed(self.whole(logits), self.tokens, so_far)
            row = None if context is None else context[-1:]
            token, weights = model.rule.draft(logits, self.length + 1 + depth, row, self.table)
            chosen.append(token.astype(mx.uint32))
            kept.extend([] if weights is None else [weights])
            return token

        return choose, kept

    def draft(self, rows: mx.array) -> None:
        """rows [W, d]: the cascade's input at positions length-W..length-1. Sets drafts, what is kept of them, and tail."""
        model, start = self.model, self.length - rows.shape[0]
        assert model.heads is not None and model.head_logits is not None and self.next is not None
        trim_to(self.head_caches, start)
        text = mx.concatenate([mx.array(self.tokens[start + 1 :], mx.uint32), self.next.astype(mx.uint32)])
        choose, kept = self.drafting()
        self.drafts = draft_chain(model.base, model.heads, model.head_logits, rows[None], text[None], self.head_caches, choose)
        self.kept = mx.concatenate(kept) if model.rule.keeps_drafts else None
        self.tail = rows[-self.rows_kept :]

    def whole(self, logits: mx.array) -> mx.array:
        """Head logits [1, V], or [1, D] over the draft vocabulary -> [1, V]."""
        heads = self.model.heads
        if heads is None or heads.draft_tokens is None:
            return logits
        return spread(logits, heads.draft_tokens, self.model.base.vocab_size)

    def quantise(self) -> None:
        """Quantises the base's caches once they are long enough, where that is asked for (KVOptions)."""
        kv = self.model.kv
        if kv.bits is None:
            return
        for i, cache in enumerate(self.caches):
            if hasattr(cache, "to_quantized") and cache.offset >= kv.start:
                self.caches[i] = cache.to_quantized(group_size=kv.group_size, bits=kv.bits)

    def rewind(self, length: int) -> None:
        """The base's caches hold positions 0..length-1 of the text, no more: what recurrent state cannot take back is read
        again."""
        at = self._marks.go_back(self.caches, length)
        while at < length:
            cancel_point()
            chunk = self.tokens[at : min(at + PREFILL_CHUNK, length)]
            hidden = self.model.base.trunk(mx.array([chunk]), self.caches)
            self.quantise()
            mx.eval(hidden, arrays_of(self.caches))
            at += len(chunk)

    def mark(self, states: Sequence[Arrays]) -> None:
        """These are the recurrent states behind the text, which is being written elsewhere."""
        self._marks.pass_by(self.length, states)

    def reach_back(self) -> None:
        """The last positions can be taken back without reading more than those, wherever the caches came from."""
        start = max(0, self.length - max(self.rows_kept, 1))
        if reach_of(self.caches) > start:
            self.rewind(start)
            self.rewind(self.length)

    def refresh(self, length: int) -> None:
        """Keeps positions 0..length-1 (length <= self.length).

        The last rows_kept of them run once more, since drafting needs their states.
        """
        keep = max(0, length - max(self.rows_kept, 1))
        again = self.tokens[keep:length]
        self.rewind(keep)
        del self.tokens[keep:]
        trim_to(self.head_caches, keep)
        self.tail = None
        if again:
            self.force(again)


def read_token(token: mx.array) -> int:
    """The id in an array [1]: waits for it."""
    return read_tokens(token)[0]


def read_tokens(tokens: mx.array) -> list[int]:
    """The ids in an array [n]: waits for it."""
    values: Any = tokens.tolist()
    return values
