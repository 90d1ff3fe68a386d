"""`PlainDecoder`: plain decoding over mlx-lm's own caches. A pass is enqueued before the last token is read.
Called by decoding/open.py."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from mtpd_mlx.decoding.kept import Kept
from mtpd_mlx.decoding.text_state import HostState, Model, read_token
from mtpd_mlx.decoding.tuning.plan import Plan
from mtpd_mlx.model.finite import marked
from mtpd_mlx.model.runtime import mx
from mtpd_mlx.speculative.protocol import Round


class PlainDecoder(Kept):
    """A Backend without drafts."""

    num_draft_tokens = 0

    def __init__(self, model: Model, capacity: int | None = None):
        if model.num_draft_tokens:
            raise ValueError(f"plain decoding: got {model.num_draft_tokens} drafts, expected none")
        self.model, self.plan = model, Plan()
        self.plan_milliseconds: dict[str, float] = {}  # what choosing the plan measured
        self.capacity = model.base.context_length if capacity is None else capacity
        self._host = HostState(model)
        self._next: int | None = None
        self._ahead: tuple[mx.array, mx.array] | None = None  # [1] each: the token after `_next`, and marked
        self._recent: mx.array | None = None  # [N]: the rule's context of `_ahead`, without it

    @property
    def length(self) -> int:
        return self._host.length

    @property
    def tokens(self) -> list[int]:
        return list(self._host.tokens)

    def prefill(self, tokens: Sequence[int]) -> int:
        if len(tokens) == 0:
            raise ValueError("prefill: got no tokens, expected at least one")
        self._need(len(tokens))
        with self._or_as_before():
            self._drop()
            self._host.prefill(list(tokens))
            return self._begin()

    def step(self, token: int) -> int:
        self._need(1)
        host = self._host
        with self._or_as_before():
            if self._ahead is None or token != self._next:
                self._drop()
                host.force([token])
                return self._begin()
            host.next, chosen = self._ahead
            host.tokens.append(token)
            self._ahead = self._launch(host.next)
            self._next = read_token(chosen)
            self.model.check([self._next], self.length)
            return self._next

    @contextmanager
    def _or_as_before(self) -> Iterator[None]:
        """Where what is inside is interrupted (Ctrl-C, a fault), the text is as it was; what comes next trims its caches."""
        before = self.length
        try:
            yield
        except BaseException:
            self._ahead, self._next = None, None
            del self._host.tokens[before:]
            raise

    def round(self, token: int) -> Round:
        return Round([self.step(token)], 0, 0)

    def rewind_to(self, length: int) -> None:
        if not 0 <= length <= self.length:
            raise ValueError(f"rewind_to: got {length}, expected 0..{self.length}")
        if length == self.length:
            return
        self._drop()
        if length == 0:
            self._host.clear()
        else:  # nothing is drafted: the next step or prefill names the token that goes on
            self._host.rewind(length)
            del self._host.tokens[length:]
        self._next = None

    def settled(self) -> HostState:
        """The state with nothing under way."""
        self._drop()
        return self._host

    def resume(self, tokens: list[int], caches: list[Any], head_caches: list[Any]) -> None:
        """Goes on behind `tokens`, which these mlx-lm caches hold."""
        self._host.restore(tokens, caches, head_caches)
        self._next = None

    def _begin(self) -> int:
        host, size = self._host, self.model.rule.context
        assert host.next is not None
        self._recent = host.recent(size) if size else None
        self._ahead = self._launch(host.next)
        self._next = host.read_next()
        return self._next

    def _launch(self, token: mx.array) -> tuple[mx.array, mx.array] | None:
        """Enqueues the pass over `token` [1], which follows the text; the token after it, and the same marked. None where it
        would not fit."""
        host, model = self._host, self.model
        if self.length + 1 > self.capacity:
            return None
        _, _, logits = model.plain_pass(token[None], host.caches)
        context = None
        if model.logits_processors:
            logits = model.processed(logits, host.tokens, token)
        if self._recent is not None:
            self._recent = mx.concatenate([self._recent, token.astype(mx.uint32)])[1:]
            context = self._recent[None]
        host.quantise()
        after = model.rule.first(logits, self.length + 1, context, host.table)
        chosen = marked(after, logits)
        mx.async_eval(after, chosen)
        return after, chosen

    def _drop(self) -> None:
        self._ahead = None
        self._host.rewind(self._host.length)

    def _need(self, positions: int) -> None:
        if self.length + positions > self.capacity:
            raise ValueError(f"context full: got {self.length} + {positions} positions, expected at most {self.capacity}")
