"""`Decoder`: the MLX Backend with one number of drafts. Prefill and steps on mlx-lm's caches, rounds by the plan.
Called by decoding/open.py."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from mtpd_mlx.decoding.fixed_rounds import FixedRounds, round_graph
from mtpd_mlx.decoding.growing_rounds import GrowingRounds
from mtpd_mlx.decoding.kept import Kept
from mtpd_mlx.decoding.text_state import HostState, Model
from mtpd_mlx.decoding.tuning.plan import Plan
from mtpd_mlx.model.runtime import mx
from mtpd_mlx.speculative.protocol import Round


class Rounds(Protocol):
    """What a text is in while it is decoded. `leave`: the host's state is whole again. has_caches: as FixedRounds'."""

    def leave(self) -> None: ...


class Decoder(Kept):
    """Batch 1. A round proposes nothing, and takes a plain step, where drafts do not follow `token`, and, over fixed caches,
    in a text of fewer than K tokens. With K = 0, `step` is a round without drafts: plain decoding."""

    def __init__(self, model: Model, plan: Plan, capacity: int | None = None):
        if plan.cache == "fixed" and (why := needs_growing(model)):
            raise ValueError(f"plan {plan}: {why} needs the plan growing")
        self.model, self.plan = model, plan
        self.plan_milliseconds: dict[str, float] = {}  # what choosing the plan measured
        self.num_draft_tokens = model.num_draft_tokens
        self.capacity = model.base.context_length if capacity is None else capacity
        self._host = HostState(model)
        self._rounds: Rounds | None = None
        self._next: int | None = None
        self._stale: int | None = None  # the length to which the text was cut
        if plan.cache == "fixed":
            graph = round_graph(model, plan.write, plan.products)
            self._graph = mx.compile(graph) if plan.compiled else graph

    @property
    def length(self) -> int:
        return self._host.length if self._stale is None else self._stale

    @property
    def tokens(self) -> list[int]:
        """The cached text."""
        return self._host.tokens[: self.length]

    def prefill(self, tokens: Sequence[int]) -> int:
        if len(tokens) == 0:
            raise ValueError("prefill: got no tokens, expected at least one")
        self._need(len(tokens))
        with self._or_as_before():
            self._settle()
            self._leave()
            self._host.prefill(list(tokens))
            return self._read()

    def step(self, token: int) -> int:
        self._need(1)
        with self._or_as_before():
            self._settle()
            if self.num_draft_tokens or self.plan.cache == "growing" or token != self._next:
                return self._force(token)
            _, (self._next,) = self._enter().advance()
            return self._next

    def round(self, token: int) -> Round:
        k = self.num_draft_tokens
        self._need(1 + k)
        with self._or_as_before():
            self._settle()
            short = self.plan.cache == "fixed" and self.length < k
            if not k or short or token != self._next:
                return Round([self.step(token) if not k else self._force(token)], 0, 0)
            accepted, emitted = self._enter().advance()
            self._next = emitted[-1]
            return Round(emitted, accepted, k)

    def rewind_to(self, length: int) -> None:
        if not 0 <= length <= self.length:
            raise ValueError(f"rewind_to: got {length}, expected 0..{self.length}")
        if length == 0:
            self._forget()
        elif length < self.length:
            self._stale = length

    def _forget(self) -> None:
        self._rounds, self._stale, self._next = None, None, None
        self._host.clear()

    @contextmanager
    def _or_as_before(self) -> Iterator[None]:
        """Where what is inside is interrupted (Ctrl-C, a fault), the text is as it was, or shorter: its last tokens run again
        before it goes on. It is empty where its caches were on their way from one graph to another."""
        before = self.length
        try:
            yield
        except BaseException:
            kept = min(before, self._host.length)
            if kept and getattr(self._rounds, "has_caches", self._host.caches):
                self._stale, self._next = kept, None
            else:
                self._forget()
            raise

    def settled(self) -> HostState:
        """The state over mlx-lm's caches, with nothing under way."""
        self._settle()
        self._leave()
        return self._host

    def resume(self, tokens: list[int], caches: list[Any], head_caches: list[Any]) -> None:
        """Goes on behind `tokens`, which these mlx-lm caches hold. The last K are run again to draft behind them."""
        self._host.restore(tokens, caches, head_caches)
        self._rounds, self._next, self._stale = None, None, len(tokens)

    def _settle(self) -> None:
        """After a rewind: the state as if the text had never gone on."""
        if self._stale is not None:
            self._leave()
            self._host.refresh(self._stale)
            self._stale = None
            self._read()

    def _enter(self) -> GrowingRounds | FixedRounds:
        if self._rounds is None:
            if self.plan.cache == "fixed":
                self._rounds = FixedRounds(self._host, self._graph, self.capacity)
            else:
                self._rounds = GrowingRounds(self._host, self.capacity)
        assert isinstance(self._rounds, GrowingRounds | FixedRounds)
        return self._rounds

    def _leave(self) -> None:
        if self._rounds is not None:
            self._rounds.leave()
            self._rounds = None

    def _force(self, token: int) -> int:
        self._leave()
        self._host.force([token])
        return self._read()

    def _read(self) -> int:
        self._next = self._host.read_next()
        return self._next

    def _need(self, positions: int) -> None:
        if self.length + positions > self.capacity:
            raise ValueError(f"context full: got {self.length} + {positions} positions, expected at most {self.capacity}")


def needs_growing(model: Model) -> str | None:
    """What of this model cannot be had with fixed caches."""
    if model.base.dims.paired:
        return f"a base of {model.base.dims.model_type}"
    if model.exact:
        return "--exact"
    if model.kv.bits is not None:
        return "a quantised KV cache"
    return "a logits processor" if model.logits_processors else None
