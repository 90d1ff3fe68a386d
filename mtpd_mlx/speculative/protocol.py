"""`Backend`, `Chooses`, `StepModel`: the protocols that the decoder loop drives, for one text.
Called by both runtimes, which implement them. Offsets and the round: docs/architecture.md."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from mtpd_mlx.speculative.drafting import Drafting


@dataclass(frozen=True)
class Round:
    """One verify-accept-draft round.

    emitted: the main head's tokens, accepted drafts first, its own last (accepted + 1 of them). proposed: drafts
    verified (0: a plain step). source: whose drafts they were, "heads" or "lookup". Seconds are None where one call does
    everything.
    """

    emitted: list[int]
    accepted: int
    proposed: int
    draft_seconds: float | None = None
    verify_seconds: float | None = None
    source: str = "heads"

    def __post_init__(self) -> None:
        if not (0 <= self.accepted <= self.proposed and len(self.emitted) == self.accepted + 1):
            raise ValueError(
                f"round: got {len(self.emitted)} tokens, {self.accepted} of {self.proposed} drafts accepted, "
                "expected one token more than accepted drafts"
            )


class Backend(Protocol):
    """`length` positions are cached and final; the token at position `length` is known to the caller, not to the cache.

    A `round` is valid after any of `prefill`, `step`, `round` and `rewind_to`, with any token the caller names.
    """

    num_draft_tokens: int
    capacity: int

    @property
    def length(self) -> int: ...

    def prefill(self, tokens: Sequence[int]) -> int:
        """Appends `tokens` (at least one) at position `length`; returns the main head's next token."""
        ...

    def step(self, token: int) -> int:
        """Appends `token`; returns the main head's next token: ordinary decoding. Needs length + 1 <= capacity."""
        ...

    def round(self, token: int) -> Round:
        """Appends `token` and the drafts that the main head confirms.

        Needs length + 1 + num_draft_tokens <= capacity.
        """
        ...

    def rewind_to(self, length: int) -> None:
        """Keeps positions 0..length-1. ValueError outside 0..length."""
        ...


@runtime_checkable
class Chooses(Protocol):
    """A Backend that chooses for every round what it verifies (drafting.py): heads' drafts, num_draft_tokens of them at most,
    prompt lookup's, or nothing. Its `round` is valid wherever one position is free."""

    drafting: Drafting


@runtime_checkable
class Renews(Protocol):
    """A Backend whose text can go on as another one's, with other random numbers. Without it only an empty text gets them."""

    def renew(self) -> None:
        """What follows the cached positions is drawn anew."""
        ...


class StepModel(Protocol):
    """What a runtime offers when acceptance is computed outside of it (rounds.StepBackend makes a Backend of it)."""

    num_draft_tokens: int
    capacity: int

    @property
    def length(self) -> int: ...

    def verify(self, tokens: Sequence[int]) -> np.ndarray:
        """Appends `tokens` (m of them) at positions length..; the main head's argmax after each, int [m]; NO_TOKEN where
        its logits are not finite (speculative/finite.py)."""
        ...

    def draft(self, next_token: int) -> list[int]:
        """num_draft_tokens guesses for what follows x_length = next_token; all positions below length are final."""
        ...

    def rewind_to(self, length: int) -> None:
        """Keeps positions 0..length-1. ValueError outside 0..length."""
        ...


@runtime_checkable
class Prefills(Protocol):
    """A StepModel that has a cheaper way into the cache than `verify`: the output head runs on the last row only."""

    def prefill(self, tokens: Sequence[int]) -> int: ...
