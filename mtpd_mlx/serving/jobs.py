"""`Request`, `Job` and the events of a job: what goes into the engine and what comes out.
Called by serving/engine.py, scheduler.py and text.py."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from mtpd_mlx.serving.errors import ApiError
from mtpd_mlx.speculative.constrained import Constraint
from mtpd_mlx.speculative.sampling import Sampling
from mtpd_mlx.speculative.stats import DecodeStats
from mtpd_mlx.text.answer import Piece


@dataclass(frozen=True)
class Request:
    """prompt: token ids; stop: texts that end the answer, which are no part of it; constraint: what the answer is bound to."""

    prompt: list[int]
    sampling: Sampling
    max_tokens: int
    stop: tuple[str, ...] = ()
    stream: bool = False
    constraint: Constraint | None = None


@dataclass(frozen=True)
class Progress:
    """What one call of the decoder brought."""

    pieces: list[Piece]


@dataclass(frozen=True)
class Finished:
    """reason: "stop" or "length"; stop_text: the one of the request that ended it; cached_tokens: of the prompt, that were not
    prefilled again."""

    reason: str
    stop_text: str | None
    prompt_tokens: int
    cached_tokens: int
    stats: DecodeStats
    seconds_to_first: float
    seconds: float

    def figures(self) -> dict[str, Any]:
        """What every form adds to its counts: tau, tokens per second, rounds by what they verified."""
        return {
            "tau": round(self.stats.tau, 3),
            "tokens_per_second": round(self.stats.tokens_per_second, 1),
            "seconds_to_first_token": round(self.seconds_to_first, 3),
            "rounds": self.stats.chosen,
        }


Event = Progress | Finished | ApiError


@dataclass(eq=False)
class Job:
    """One request under way. `tell` is called in the engine's thread, the last time with Finished or an ApiError. deadline: in
    seconds of time.perf_counter(); None: none."""

    request: Request
    tell: Callable[[Event], None]
    came: float = field(default_factory=time.perf_counter)
    cancelled: threading.Event = field(default_factory=threading.Event)
    deadline: float | None = None

    @property
    def over(self) -> ApiError | None:
        """Why it should not go on, if it should not."""
        if self.cancelled.is_set():
            return ApiError(499, "the client has gone", code="cancelled")
        if self.deadline is not None and time.perf_counter() > self.deadline:
            return ApiError(504, f"not done after {self.deadline - self.came:g} seconds (--request-timeout)", code="timeout")
        return None
