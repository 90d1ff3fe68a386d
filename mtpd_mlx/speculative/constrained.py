"""`ConstrainedBackend`: a text bound by a grammar, decoded losslessly with drafts, on any runtime that gives logits.
Called by the servers and `generate` of both runtimes; text/grammar.py makes the constraints.

The main head's row behind x_P, d_1..d_j is masked by what the grammar allows there, and so is the head that guesses the token
of that place. A window of drafts ends before the first token that the grammar refuses, and before one that ends the text. So p
and q (sampling.py) are both distributions over the allowed tokens, and the text is that of plain decoding under the same masks.
"""

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np

from mtpd_mlx.speculative.cancel import cancel_point
from mtpd_mlx.speculative.drafting import Drafting, Proposal
from mtpd_mlx.speculative.finite import check_logits
from mtpd_mlx.speculative.logprobs import Logprobs
from mtpd_mlx.speculative.masked_rule import MaskedRule, one_hot
from mtpd_mlx.speculative.protocol import Round
from mtpd_mlx.speculative.sampling import Sampling
from mtpd_mlx.speculative.saved import Keeps, Saved, save_from

MOST_FORCED = 16  # tokens without a choice that one round verifies
SCORED = 64  # tokens of a prompt whose logits are on the host at once
Choose = Callable[[np.ndarray], int | None]


class Constraint(Protocol):
    """Where a text stands in its grammar."""

    @property
    def ends(self) -> Collection[int]:
        """The tokens that end a text."""
        ...

    def allowed(self) -> np.ndarray:
        """bool [V]: the tokens that may come next; at the end of the grammar those of `ends`."""
        ...

    def forced(self) -> list[int]:
        """Tokens that come next whatever the model thinks, as far as that is known. May be empty."""
        ...

    def take(self, token: int) -> bool:
        """The text goes on with `token`. False, and nothing changed, where it may not."""
        ...

    def back(self, count: int) -> None:
        """Takes the last `count` tokens back."""
        ...


@runtime_checkable
class Weighs(Protocol):
    """A Constraint that also moves logits (weighed.py)."""

    def weights(self) -> np.ndarray:
        """float32 [V]: what is added to the logits of the next token."""
        ...


def mask_of(constraint: Constraint) -> np.ndarray:
    """For MaskedRule: bool [V], or float32 [V] to add, -inf where a token may not come."""
    allowed = constraint.allowed()
    if not isinstance(constraint, Weighs):
        return allowed
    return np.where(allowed, constraint.weights(), np.float32(-np.inf))


class LogitModel(Protocol):
    """Base and heads whose logits the host sees. num_draft_tokens: heads."""

    num_draft_tokens: int
    capacity: int

    @property
    def length(self) -> int: ...

    def prefill(self, tokens: Sequence[int]) -> np.ndarray:
        """Appends `tokens`; float32 [1, V] after the last one."""
        ...

    def run(self, tokens: Sequence[int]) -> np.ndarray:
        """float32 [m, V] after each of `tokens` [m] at positions length..; `keep` says how many of them are text."""
        ...

    def keep(self, count: int) -> None:
        """The first `count` >= 1 tokens of the last run are text."""
        ...

    def draft(self, count: int, token: int, choose: Choose) -> None:
        """Runs the first `count` heads behind the text and `token`, one after the other. `choose` makes a draft of each one's
        logits, float32 [V], -1e30 at most outside the draft vocabulary; None: no more are wanted."""
        ...

    def rewind_to(self, length: int) -> None:
        """Keeps positions 0..length-1. ValueError outside 0..length."""
        ...


@dataclass
class _Window:
    """What a round verifies. masks [m+1]: of mask_of; probs [m]: what each draft was drawn from, None in greedy text."""

    masks: list[np.ndarray]
    proposal: Proposal | None = None
    source: str = "plain"
    drafts: list[int] = field(default_factory=list)
    probs: list[np.ndarray | None] = field(default_factory=list)


class ConstrainedBackend:
    """A Backend of one text. `drafting` chooses what rounds verify; tokens without a choice are verified before anything else.
    special: tokens that XTC never leaves out."""

    def __init__(self, model: LogitModel, drafting: Drafting, sampling: Sampling | None = None, special: Sequence[int] = ()):
        self.model, self.drafting = model, drafting
        self.num_draft_tokens, self.capacity = model.num_draft_tokens, model.capacity
        self._rule = MaskedRule(sampling or Sampling(), model.capacity + 1, special)
        self._constraint: Constraint | None = None
        self._logprobs: Logprobs | None = None
        self._tokens: list[int] = []
        self._start = 0  # where the bound text begins; the constraint has taken all tokens from there on
        self._refused = False  # the last round's forced tokens were not the model's

    @property
    def length(self) -> int:
        return self.model.length

    @property
    def tokens(self) -> list[int]:
        """The cached text."""
        return self._tokens

    def bind(self, constraint: Constraint, logprobs: Logprobs | None = None) -> None:
        """`constraint`, at its beginning, holds for the text behind the next prefill. `logprobs` sees what is emitted."""
        self._constraint, self._logprobs, self._start = constraint, logprobs, len(self._tokens)

    def prefill(self, tokens: Sequence[int]) -> int:
        if len(tokens) == 0:
            raise ValueError("prefill: got no tokens, expected at least one")
        self._need(len(tokens))
        constraint = self._bound()
        constraint.back(len(self._tokens) - self._start)  # what was bound before is prompt now
        before = self.length
        try:
            logits = self._read(tokens)
        finally:  # it may be called off between two chunks
            self._tokens += [int(t) for t in tokens[: self.length - before]]
            self._start, self._refused = len(self._tokens), False
        check_logits(logits, self.length)
        self._rule.begin()
        token = self._rule.first(logits[0], mask_of(constraint), self._tokens)
        if self._logprobs is not None:
            self._logprobs.begin()
            self._logprobs.see(logits, [token])
        self.drafting.begin(self._tokens, token)
        return token

    def _read(self, tokens: Sequence[int]) -> np.ndarray:
        """As LogitModel.prefill, with the log-probabilities of `tokens` where they are wanted."""
        logprobs = self._logprobs
        if logprobs is None or not logprobs.of_prompt:
            return self.model.prefill(tokens)
        for start in range(0, len(tokens), SCORED):
            cancel_point()
            piece = tokens[start : start + SCORED]
            logits = self.model.run(piece)
            check_logits(logits, self.length + 1)
            self.model.keep(len(piece))
            logprobs.see_prompt(logits, piece)
        return logits[-1:]

    def step(self, token: int) -> int:
        return self._round(token, 0).emitted[0]

    def round(self, token: int) -> Round:
        return self._round(token, self.capacity - self.length - 1)

    def _round(self, token: int, most: int) -> Round:
        self._need(1)
        began, constraint = time.perf_counter(), self._bound()
        if not constraint.take(token):
            raise ValueError(f"token {token}: the grammar of this text has no place for it")
        self._taken = len(self._tokens) - self._start + 1
        try:
            window = self._window(token, most)
            logits = self.model.run([token, *window.drafts])
            check_logits(logits, self.length + 1)
        except BaseException:
            constraint.back(self._taken - (len(self._tokens) - self._start))
            raise
        accepted, following = self._rule.accept(logits, window.masks, window.drafts, window.probs, [*self._tokens, token])
        self.model.keep(1 + accepted)
        constraint.back(len(window.drafts) - accepted)
        self._tokens += [token, *window.drafts[:accepted]]
        emitted = [*window.drafts[:accepted], following]
        if self._logprobs is not None:
            self._logprobs.see(logits[: accepted + 1], emitted)
        self._refused = window.source == "grammar" and not accepted
        if window.proposal is not None:
            whole = len(window.drafts) == window.proposal.count
            seconds = time.perf_counter() - began if whole else None
            self.drafting.observe(window.proposal, emitted, len(window.drafts), seconds)
        return Round(emitted, accepted, len(window.drafts), source=window.source)

    def rewind_to(self, length: int) -> None:
        self.model.rewind_to(length)
        if self._constraint is not None:
            self._constraint.back(max(0, len(self._tokens) - max(length, self._start)))
        del self._tokens[length:]
        self._start = min(self._start, length)
        if length == 0:
            self.drafting.restart()

    @property
    def saved_kind(self) -> str:
        return self.model.saved_kind if isinstance(self.model, Keeps) else ""

    def save(self) -> Saved | None:
        """Where the model can (saved.py)."""
        return save_from(self.model)

    def load(self, saved: Saved, length: int) -> None:
        if not isinstance(self.model, Keeps):
            raise ValueError(f"load: {type(self.model).__name__} cannot take a saved text")
        self.rewind_to(0)
        self.model.load(saved, length)
        self._tokens, self._start = list(saved.tokens[:length]), length

    def _window(self, token: int, most: int) -> _Window:
        """The drafts behind `token`, which the constraint takes, and the masks of the rows from `token` on."""
        constraint = self._bound()
        window = _Window([mask_of(constraint)])
        if most == 0:
            return window
        if not self._refused and (forced := constraint.forced()):
            window.source = "grammar"
            self._known(window, forced[: min(most, MOST_FORCED)])
            return window
        self.drafting.align(self._tokens, token)
        window.proposal = proposal = self.drafting.propose(most)
        window.source = proposal.kind.source
        if proposal.drafts:
            self._known(window, proposal.drafts)
        elif proposal.count:
            before = [*self._tokens, token]
            self.model.draft(proposal.count, token, lambda logits: self._drafted(window, logits, before))
        return window

    def _known(self, window: _Window, tokens: Sequence[int]) -> None:
        """Drafts that are certain, as far as they are legal."""
        for token in tokens:
            if not self._take(window, token, None if self._rule.greedy else one_hot(token, window.masks[0].size)):
                return

    def _drafted(self, window: _Window, logits: np.ndarray, before: list[int]) -> int | None:
        """The draft of a head's logits [V] at the end of the window."""
        choice = self._rule.draft(logits, window.masks[-1], [*before, *window.drafts])
        return choice[0] if choice is not None and self._take(window, *choice) else None

    def _take(self, window: _Window, token: int, probs: np.ndarray | None) -> bool:
        constraint = self._bound()
        if token in constraint.ends or not constraint.take(token):
            return False
        self._taken += 1
        window.drafts.append(token)
        window.probs.append(probs)
        window.masks.append(mask_of(constraint))
        return True

    def _bound(self) -> Constraint:
        if self._constraint is None:
            raise ValueError("a bound text: got no constraint, expected bind(...) before prefill")
        return self._constraint

    def _need(self, positions: int) -> None:
        if self.length + positions > self.capacity:
            raise ValueError(f"context full: got {self.length} + {positions} positions, expected at most {self.capacity}")
