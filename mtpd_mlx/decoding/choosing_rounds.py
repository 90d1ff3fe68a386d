"""`ChoosingRounds`: rounds over mlx-lm's own caches with drafts of the heads, of prompt lookup, or none.
Called by decoding/choosing.py and batch_rounds.py.

A plain step needs no number that the host would have to read: where the next round is one too, it is enqueued before this one's
token is read, as mlx_lm.generate does. Everything else is chosen, built and enqueued once the round before has been read, and
before the caller sees its tokens.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mtpd_mlx.decoding.lagging_heads import LaggingHeads
from mtpd_mlx.decoding.rewind import Transaction, begin
from mtpd_mlx.decoding.text_state import HostState, Model, read_tokens
from mtpd_mlx.decoding.token_rules import contexts_of, one_hot
from mtpd_mlx.model.finite import marked
from mtpd_mlx.model.runtime import mx
from mtpd_mlx.speculative.drafting import Drafting, Proposal
from mtpd_mlx.speculative.protocol import Round
from mtpd_mlx.speculative.round_costs import Kind

REGULAR_LAG = 2  # windows: a round whose heads have more to catch up with says nothing about what rounds cost
OUTSIDE = 0.2  # share of a round's time that the caller may have spent, else it says nothing either


class ChoosingState(HostState):
    """A text whose heads may lag behind. Drafts are made when a round asks for them."""

    def __init__(self, model: Model):
        self.lagging: LaggingHeads | None = None
        if model.heads is not None and model.num_draft_tokens:
            assert model.head_logits is not None
            self.lagging = LaggingHeads(model.base, model.heads, model.head_logits, model.num_draft_tokens)
        super().__init__(model)

    def clear(self) -> None:
        super().clear()
        if self.lagging is not None:
            self.lagging.clear()
            self.head_caches = self.lagging.caches

    def restore(self, tokens: list[int], caches: list[Any], head_caches: list[Any]) -> None:
        super().restore(tokens, caches, head_caches)
        if self.lagging is not None:
            self.lagging.restore(head_caches, len(tokens))

    def source(self, hidden: mx.array, normed: mx.array) -> mx.array | None:
        """The cascade's input [n, d]; None without heads."""
        heads = self.model.heads
        return None if heads is None or self.lagging is None else heads.source(self.model.base, hidden, normed)[0]

    def _fill_heads(self, hidden: mx.array, normed: mx.array, following: Sequence[int]) -> None:
        self._after(hidden, normed)
        assert self.lagging is not None
        self.lagging.catch_up(self.lagging.count, self.tokens)

    def _after(self, hidden: mx.array, normed: mx.array) -> None:
        rows = self.source(hidden, normed)
        assert self.lagging is not None and rows is not None
        self.lagging.add(rows)

    def refresh(self, length: int) -> None:
        if self.lagging is not None:
            self.lagging.cut(max(0, length - self.lagging.count))
        super().refresh(length)

    def catch_up(self) -> None:
        """All heads have read the text."""
        if self.lagging is not None and self.lagging.length:
            self.lagging.catch_up(self.lagging.count, self.tokens)
            self.head_caches = self.lagging.caches

    def drafted(self, count: int) -> tuple[mx.array, mx.array | None]:
        """The drafts [count] of the first heads behind the text and `next`, and what the rule keeps of them [count, V]."""
        assert self.lagging is not None and self.next is not None
        choose, kept = self.drafting()
        drafts = self.lagging.draft(count, self.tokens, self.next, choose)
        return drafts, mx.concatenate(kept) if self.model.rule.keeps_drafts else None


@dataclass
class Launched:
    """A pass under way. result [m+2]: accepted drafts, then m + 1 marked tokens; text [m+1]: the tokens; rows [m+1, d]: the
    cascade's input there (None without heads); regular: it takes as long as rounds of its kind do; verified: the pass."""

    proposal: Proposal
    result: mx.array
    text: mx.array
    rows: mx.array | None
    began: float
    regular: bool
    verified: Transaction


class ChoosingRounds:
    """Advances a ChoosingState round by round. Between rounds the state is whole; `leave` makes it so after a launch ahead."""

    def __init__(self, host: ChoosingState, capacity: int, drafting: Drafting):
        self._host, self._capacity, self._drafting = host, capacity, drafting
        self._ahead: Launched | None = None
        self._read: float | None = None  # when the last round was read
        self._left = 0.0  # when the caller got its tokens
        self._seen: set[Kind] = set()

    def advance(self, token: int) -> Round:
        """One round behind `token`, which is the host's `next`."""
        entered, host = time.perf_counter(), self._host
        self._drafting.align(host.tokens, token)
        launched = self._ahead or self._launch(self._propose(host.length), [])
        self._ahead = self._step_ahead(launched, token)
        accepted, *emitted = read_tokens(launched.result)
        now = time.perf_counter()
        emitted = emitted[: accepted + 1]
        host.model.check(emitted, host.length + 1)
        self._take(launched, token, accepted, emitted)
        proposed, kind = launched.proposal.count, launched.proposal.kind
        self._drafting.observe(launched.proposal, emitted, proposed, self._seconds(launched, entered, now))
        if self._ahead is None and host.length < self._capacity:
            self._ahead = self._launch(self._propose(host.length), [])
        self._read, self._left = now, time.perf_counter()
        return Round(emitted, accepted, proposed, source=kind.source)

    def _propose(self, length: int) -> Proposal:
        return self._drafting.propose(self._capacity - length - 1)

    def _step_ahead(self, launched: Launched, token: int) -> Launched | None:
        """The plain step after a plain step, if that is what comes next."""
        length = self._host.length + 1
        if launched.proposal.count or length >= self._capacity:
            return None
        proposal = self._propose(length)
        return None if proposal.count else self._launch(proposal, [token], launched.text)

    def _take(self, launched: Launched, token: int, accepted: int, emitted: list[int]) -> None:
        """What was accepted becomes the text."""
        host = self._host
        host.tokens += [token, *emitted[:-1]]
        host.next = launched.text[accepted : accepted + 1]
        if accepted < launched.proposal.count:
            launched.verified.commit(accepted + 1)
        if host.lagging is not None and launched.rows is not None:
            if launched.proposal.kind.source == "heads":
                host.lagging.accepted(accepted)
            host.lagging.add(launched.rows[: accepted + 1])

    def _launch(self, proposal: Proposal, more: list[int], following: mx.array | None = None) -> Launched:
        """The pass of `proposal` behind the host's text and `more`; following [1]: the token that comes then (default: the
        host's next)."""
        host, model, began = self._host, self._host.model, time.perf_counter()
        following = host.next if following is None else following
        assert following is not None
        tokens, kept, regular = following.astype(mx.uint32), None, True
        if proposal.kind.source == "heads":
            assert host.lagging is not None
            regular = host.lagging.lag(proposal.count) <= REGULAR_LAG * (host.lagging.count + 1)
            drafts, kept = host.drafted(proposal.count)
            tokens = mx.concatenate([tokens, drafts.astype(mx.uint32)])
        elif proposal.count:
            drafts = mx.array(proposal.drafts, mx.uint32)
            kept = one_hot(drafts, model.base.vocab_size) if model.rule.keeps_drafts else None
            tokens = mx.concatenate([tokens, drafts])
        run = model.verify_pass if proposal.count else model.plain_pass
        verified = begin(host.caches, tokens.size)
        hidden, normed, logits = run(tokens[None], host.caches)
        if model.logits_processors:
            logits = model.processed(logits, [*host.tokens, *more], tokens)
        size = model.rule.context
        contexts = contexts_of(self._recent(size, more), tokens, size) if size else None
        position = host.length + len(more) + 1
        text, count = model.rule.verify(logits, tokens[1:], position, contexts, host.table, kept)
        result = mx.concatenate([count[None], marked(text, logits)])
        host.quantise()
        rows = host.source(hidden, normed)
        mx.async_eval(result, text)
        return Launched(proposal, result, text, rows, began, regular, verified)

    def _recent(self, size: int, more: list[int]) -> mx.array:
        recent = self._host.recent(size)
        return mx.concatenate([recent, mx.array(more, mx.uint32)])[-size:] if more else recent

    def _seconds(self, launched: Launched, entered: float, now: float) -> float | None:
        """How long the round took; None where that says nothing of other rounds."""
        kind = launched.proposal.kind
        first = kind not in self._seen  # what is used for the first time is read, built or bound meanwhile
        self._seen.add(kind)
        if self._read is None or first or not launched.regular:
            return None
        seconds, outside = now - self._read, entered - self._left
        return seconds if outside < OUTSIDE * seconds else None

    @property
    def rests(self) -> bool:
        """No round is under way."""
        return self._ahead is None

    def leave(self) -> None:
        """Forgets a round launched ahead."""
        self._ahead, self._read = None, None
        self._host.rewind(self._host.length)
        if self._host.lagging is not None:
            self._host.lagging.unconfirmed()
