"""`HostedModel`: base and heads of MLX as a LogitModel. The host reads the logits of every row, head by head.
Called by decoding/open.py; speculative/constrained.py decodes bound texts with it.

Over mlx-lm's growing caches. speculative/constrained.py decodes bound texts with it; decoding/open.py opens it.
"""

from collections.abc import Callable, Sequence

import numpy as np

from mtpd_mlx.decoding.choosing_rounds import ChoosingState
from mtpd_mlx.decoding.rewind import Transaction, begin
from mtpd_mlx.decoding.saved_text import SavedText, kind_of, save_text
from mtpd_mlx.decoding.text_state import Model
from mtpd_mlx.model.runtime import mx


class HostedModel:
    """One text. Nothing is started ahead."""

    def __init__(self, model: Model, capacity: int | None = None):
        self.model = model
        self.num_draft_tokens = model.num_draft_tokens
        self.capacity = model.base.context_length if capacity is None else capacity
        self._host = ChoosingState(model)
        self._stale: int | None = None  # the length to which the text was cut
        self._ran: tuple[list[int], mx.array | None] = ([], None)  # the last run's tokens, and the cascade's input there [m, d]
        self._pass: Transaction | None = None  # the last run, until it is kept
        self._drafted = False  # its drafts are the heads'
        self._dirty = False  # a run was begun and not kept

    @property
    def length(self) -> int:
        return self._host.length if self._stale is None else self._stale

    def prefill(self, tokens: Sequence[int]) -> np.ndarray:
        self._settle()
        self._drafted = False
        self._host.fill(tokens)
        logits = self.run(tokens[-1:])
        self.keep(1)
        return logits

    def run(self, tokens: Sequence[int]) -> np.ndarray:
        self._settle()
        host, model = self._host, self.model
        run = model.plain_pass if len(tokens) == 1 else model.verify_pass
        self._dirty, self._pass = True, begin(host.caches, len(tokens))
        hidden, normed, logits = run(mx.array([list(tokens)]), host.caches)
        host.quantise()
        self._ran = [int(t) for t in tokens], host.source(hidden, normed)
        return to_numpy(logits)

    def keep(self, count: int) -> None:
        host, (tokens, rows) = self._host, self._ran
        host.tokens += tokens[:count]
        assert self._pass is not None
        if count < len(tokens):
            self._pass.commit(count)
        self._pass, self._dirty = None, False
        if host.lagging is not None and rows is not None:
            if self._drafted:
                host.lagging.accepted(count - 1)
            host.lagging.add(rows[:count])
        self._drafted = False

    def draft(self, count: int, token: int, choose: Callable[[np.ndarray], int | None]) -> None:
        self._settle()
        host, done = self._host, False
        assert host.lagging is not None

        def pick(depth: int, logits: mx.array) -> mx.array:
            nonlocal done
            choice = None if done else choose(to_numpy(host.whole(logits))[0])
            done = choice is None
            return mx.array([choice or 0], mx.uint32)  # what follows the last draft is not looked at

        host.lagging.draft(count, host.tokens, mx.array([token], mx.uint32), pick)
        self._drafted = True

    def rewind_to(self, length: int) -> None:
        if not 0 <= length <= self.length:
            raise ValueError(f"rewind_to: got {length}, expected 0..{self.length}")
        if length == 0:
            self._stale, self._drafted, self._dirty = None, False, False
            self._host.clear()
        elif length < self.length:
            self._stale = length

    @property
    def saved_kind(self) -> str:
        return kind_of(self.model.num_draft_tokens)

    def save(self) -> SavedText | None:
        """A copy of the text's caches (speculative/saved.py)."""
        if not self.length:
            return None
        self._settle()
        self._host.catch_up()
        return save_text(self._host)

    def load(self, saved: SavedText, length: int) -> None:
        """The text is the first `length` positions of what was saved."""
        self.rewind_to(0)
        self._host.restore(saved.tokens[:length], *saved.caches(length))
        self._stale = length

    def _settle(self) -> None:
        """After a rewind: the last tokens run again, for the states that heads go on from; a run that broke off leaves none."""
        if self._stale is not None:
            self._host.refresh(self._stale)
            self._stale = None
        if self._dirty:
            self._host.rewind(self._host.length)
            self._dirty = False


def to_numpy(logits: mx.array) -> np.ndarray:
    """float32 on the host: waits for the device."""
    return np.array(logits.astype(mx.float32))
