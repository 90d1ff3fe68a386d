"""`FixedChoosingDecoder`: rounds over fixed buffers with drafts of the heads, of prompt lookup, or none.
Called by decoding/open.py.

Rounds of heads and plain steps are enqueued before the tokens of the round before are read, since the position at which a round
begins is an array of the graph. They are chosen by what was known one round earlier. Lookup's drafts wait for the text.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mtpd_mlx.decoding.chosen_graphs import FILLS, ChosenGraphs, Text
from mtpd_mlx.decoding.decoder import Decoder
from mtpd_mlx.decoding.fixed_buffers import to_buffers
from mtpd_mlx.decoding.fixed_cache import bucket
from mtpd_mlx.decoding.text_state import HostState, Model, read_tokens
from mtpd_mlx.decoding.token_rules import one_hot
from mtpd_mlx.decoding.tuning.plan import Plan
from mtpd_mlx.model.runtime import mx, on_cpu
from mtpd_mlx.speculative.drafting import Drafting, Proposal
from mtpd_mlx.speculative.protocol import Round
from mtpd_mlx.speculative.round_costs import PLAIN

OUTSIDE = 0.2  # share of a round's time that the caller may have spent, else it says nothing of other rounds
SPARE = 64  # positions beyond the longest text and what heads read at once: a round's
ROOM = 512  # positions that buffers on a GPU have behind the text at first: every new size is compiled anew


@dataclass(frozen=True)
class Launched:
    """A round under way. result [m+2]: accepted drafts, then m + 1 marked tokens; states: of recurrent layers before it;
    regular: it takes as long as rounds of its kind do."""

    proposal: Proposal
    result: mx.array
    states: list[Any]
    regular: bool

    @property
    def most(self) -> int:
        """Positions that it adds at most."""
        return self.proposal.count + 1


class FixedChoosingRounds:
    """Takes the state of a text over from a HostState that keeps `graphs.window` rows, and gives it back with `leave`.

    final[k-1]: entries of head k below it are final, as in lagging_heads.py. ahead: a round may be enqueued before the one
    before it is read.
    """

    def __init__(self, host: HostState, graphs: ChosenGraphs, limit: int, drafting: Drafting, ahead: bool = True):
        self._host, self._graphs, self._limit, self._drafting, self._may_lead = host, graphs, limit, drafting, ahead
        model = host.model
        assert host.next is not None
        self._capacity = self._size(host.length + (ROOM if not on_cpu() else 1) + FILLS[-1])
        caches: list[Any] = [*host.caches, *host.head_caches]
        self._buffers = to_buffers(caches, host.length, self._capacity)
        self._states = graphs.layers.states(self._buffers)
        host.caches, host.head_caches = [], []  # a second reference would make every cache update a copy
        context = model.rule.context
        known = mx.array([host.tokens[0]] * context + host.tokens, mx.uint32)
        words = mx.concatenate([known, host.next.astype(mx.uint32)])
        self._text: Text = {"length": mx.array(host.length, mx.int32), "words": self._long(words, self._words(self._capacity))}
        if model.num_draft_tokens:
            assert host.tail is not None
            before = mx.zeros((host.length - host.tail.shape[0], host.tail.shape[1]), host.tail.dtype)
            self._text["states"] = self._long(mx.concatenate([before, host.tail]), self._capacity)
        if host.table is not None:
            self._text["table"] = host.table
        self._final = [max(0, host.length - k) for k in range(1, model.num_draft_tokens + 1)]
        self._ahead: Launched | None = None
        self._read: float | None = None  # when a round was read, if nothing but rounds was run since
        self._left = 0.0  # when the caller got its tokens

    @property
    def has_caches(self) -> bool:
        """False while a round is being launched with them."""
        return bool(self._buffers)

    def advance(self, token: int) -> Round:
        """One round behind `token`, with which the text goes on."""
        entered, host = time.perf_counter(), self._host
        self._drafting.align(host.tokens, token)
        launched = self._ahead or self._launch(self._drafting.propose(self._room(0)))
        self._ahead = self._lead(launched)
        accepted, *emitted = read_tokens(launched.result)
        now = time.perf_counter()
        emitted = emitted[: accepted + 1]
        host.model.check(emitted, host.length + 1)
        states = self._graphs.layers.states(self._buffers) if self._ahead is None else self._ahead.states
        self._take(launched, token, accepted, emitted, states)
        kind, proposed = launched.proposal.kind, launched.proposal.count
        regular = launched.regular and (self._ahead is None or self._ahead.regular)
        self._drafting.observe(launched.proposal, emitted, proposed, self._seconds(regular, entered, now))
        self._read = now
        if self._ahead is None and self._room(0) >= 0:
            self._ahead = self._launch(self._drafting.propose(self._room(0)))
            self._read = now if self._ahead.regular else None
        self._left = time.perf_counter()
        return Round(emitted, accepted, proposed, source=kind.source)

    def _room(self, more: int) -> int:
        """Drafts that fit behind the text and `more` positions."""
        return self._limit - self._host.length - more - 1

    def _lead(self, launched: Launched) -> Launched | None:
        """The round after the one that was launched, if it can be chosen and enqueued now."""
        if not self._may_lead or launched.proposal.drafts or self._room(launched.most) < 0:
            return None
        proposal = self._drafting.propose(self._room(launched.most))
        if proposal.drafts or (proposal.count and not self._in_window(proposal.count, launched)):
            return None
        return self._launch(proposal, launched.most)

    def _in_window(self, count: int, launched: Launched) -> bool:
        """Whether what heads 1..count will have missed behind a round under way is no more than they read before they draft."""
        window, earlier = self._graphs.window, launched.proposal
        if self._host.length + 1 < window:
            return False
        followed = earlier.kind.source == "heads" and earlier.count >= count
        return followed or self._lag(count) + launched.most <= window

    def _lag(self, count: int) -> int:
        return self._host.length - min(self._final[:count])

    def _launch(self, proposal: Proposal, more: int = 0) -> Launched:
        """Enqueues the round of `proposal` behind all that was launched: `more` positions at most beyond the host's text."""
        host, model, graphs = self._host, self._host.model, self._graphs
        layers, regular = len(model.base.layers), True
        self._grow(host.length + more + 1 + proposal.count + FILLS[-1])
        if proposal.kind.source == "heads" and not more:
            if host.length < graphs.window:
                proposal = Proposal(PLAIN)
            elif self._lag(proposal.count) > graphs.window:
                self._catch_up()
                regular = False
        fresh = graphs.first_use(proposal.kind, self._capacity)
        states = graphs.layers.states(self._buffers)
        buffers, text, drafts, drawn = self._buffers, self._text, None, None
        self._buffers, self._text = [], {}
        own, rest = buffers[:layers], buffers[layers:]
        del buffers
        if proposal.kind.source == "heads":
            used, unused = rest[: proposal.count], rest[proposal.count :]
            del rest
            drafts, drawn, used = graphs.draft(proposal.count, text, used)
            rest = [*used, *unused]
        elif proposal.count:
            drafts = mx.array(proposal.drafts, mx.uint32)
            drawn = one_hot(drafts, model.base.vocab_size) if model.rule.keeps_drafts else None
        result, text, own = graphs.verify(text, own, drafts, drawn)
        mx.async_eval(result, text, own, rest)
        self._buffers, self._text = [*own, *rest], text
        return Launched(proposal, result, states, regular and not fresh)

    def _take(self, launched: Launched, token: int, accepted: int, emitted: list[int], states: list[Any]) -> None:
        """What was accepted becomes the text."""
        host, length, self._states = self._host, self._host.length, states
        if launched.proposal.kind.source == "heads":
            for k in range(1, launched.proposal.count + 1):
                self._final[k - 1] = max(0, min(length, length + 1 + accepted - k))
        host.next = mx.array(emitted[-1:], mx.uint32)
        host.tokens += [token, *emitted[:-1]]
        host.mark(states)

    def _seconds(self, regular: bool, entered: float, now: float) -> float | None:
        """How long the round took; None where that says nothing of other rounds."""
        if self._read is None or not regular:
            return None
        seconds, outside = now - self._read, entered - self._left
        return seconds if outside < OUTSIDE * seconds else None

    def _catch_up(self) -> None:
        """All heads have read the text, but for what the next tokens may change."""
        host, graphs = self._host, self._graphs
        layers, length = len(host.model.base.layers), host.length
        start = min(self._final)
        while start < length:
            width = next((w for w in FILLS if w >= length - start), FILLS[-1])
            graphs.first_use(("fill", width), self._capacity)
            buffers, self._buffers = self._buffers, []
            own, rest = buffers[:layers], buffers[layers:]
            del buffers
            self._buffers = [*own, *graphs.fill(width, start, self._text, rest)]
            start += width
        self._final = [max(0, length - k) for k in range(1, len(self._final) + 1)]

    def _grow(self, positions: int) -> None:
        if positions <= self._capacity:
            return
        self._capacity = self._size(positions)
        self._buffers = self._graphs.layers.padded(self._buffers, self._capacity)
        self._text["words"] = self._long(self._text["words"], self._words(self._capacity))
        if "states" in self._text:
            self._text["states"] = self._long(self._text["states"], self._capacity)

    def _size(self, positions: int) -> int:
        """Capacity of buffers for so many positions; no more than any text of the decoder needs."""
        return min(bucket(positions), self._limit + FILLS[-1] + SPARE)

    def _words(self, capacity: int) -> int:
        """Size of the text's buffer: heads look ahead of the positions they read."""
        return capacity + self._host.model.rule.context + self._host.model.num_draft_tokens + 1

    @staticmethod
    def _long(x: mx.array, size: int) -> mx.array:
        return mx.pad(x, [(0, size - x.shape[0]), *[(0, 0)] * (x.ndim - 1)])

    def leave(self) -> None:
        """Back to mlx-lm's caches. What a round launched ahead has written lies beyond the text, or is written again."""
        host, model = self._host, self._host.model
        length, layers = host.length, len(model.base.layers)
        self._final = [max(0, min(final, length - k)) for k, final in enumerate(self._final, 1)]
        if model.num_draft_tokens and length - min(self._final) > model.num_draft_tokens:
            self._catch_up()
        caches = self._graphs.layers.to_growing(self._buffers, self._states, length)
        host.caches, host.head_caches = caches[:layers], caches[layers:]
        host.drafts, host.kept = None, None
        if model.num_draft_tokens:
            host.tail = self._text["states"][max(0, length - self._graphs.window) : length]
        self._buffers, self._states, self._ahead, self._text = [], [], None, {}


class FixedChoosingDecoder(Decoder):
    """The Backend that chooses the drafts of every round, over fixed buffers. Batch 1; as ChoosingDecoder (choosing.py)."""

    def __init__(self, model: Model, plan: Plan, drafting: Drafting, capacity: int | None = None, ahead: bool = True):
        super().__init__(model, plan, capacity)
        self.drafting, self._may_lead = drafting, ahead
        self._host = HostState(model, rows_kept=model.num_draft_tokens + 1 if model.num_draft_tokens else 0)
        self._graphs = ChosenGraphs(model, plan)

    def prefill(self, tokens: Sequence[int]) -> int:
        after = super().prefill(tokens)
        self.drafting.begin(self._host.tokens, after)
        return after

    def step(self, token: int) -> int:
        self._need(1)
        with self._or_as_before():
            self._settle()
            return self._force(token)

    def round(self, token: int) -> Round:
        self._need(1)
        with self._or_as_before():
            self._settle()
            if token != self._next:
                return Round([self._force(token)], 0, 0, source="plain")
            result = self._chosen().advance(token)
            self._next = result.emitted[-1]
            return result

    def _chosen(self) -> FixedChoosingRounds:
        if self._rounds is None:
            self._rounds = FixedChoosingRounds(self._host, self._graphs, self.capacity, self.drafting, self._may_lead)
        assert isinstance(self._rounds, FixedChoosingRounds)
        return self._rounds

    def _forget(self) -> None:
        super()._forget()
        self.drafting.restart()
