"""`Request`, `Job` and the events of a job: what goes into the engine and what comes out.
Called by serving/engine.py, scheduler.py and text.py."""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from mtpd_mlx.serving.errors import ApiError
from mtpd_mlx.speculative.constrained import Constraint
from mtpd_mlx.speculative.logprobs import Logprobs, Score
from mtpd_mlx.speculative.sampling import Sampling
from mtpd_mlx.speculative.stats import DecodeStats, merged
from mtpd_mlx.text.answer import Piece


@dataclass(frozen=True)
class Request:
    """One text. prompt: token ids; stop: texts that end the answer, which are no part of it; constraint: what the answer is
    bound to; logprobs: where those of its tokens are wanted (there is a constraint, too, then)."""

    prompt: list[int]
    sampling: Sampling
    max_tokens: int
    stop: tuple[str, ...] = ()
    stream: bool = False
    constraint: Constraint | None = None
    logprobs: Logprobs | None = None


@dataclass(frozen=True)
class Progress:
    """What one call of the decoder brought. scores: of tokens, each with the characters of text before it; they may come
    before their text does. prompt: scores of the prompt, once, where they are wanted."""

    pieces: list[Piece]
    scores: list[tuple[int, Score]] = field(default_factory=list)
    prompt: list[Score | None] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(piece for piece, _ in self.pieces)


@dataclass(frozen=True)
class Finished:
    """reason: "stop" or "length"; stop_text: the one of the request that ended it; cached_tokens: of the prompt, that were not
    prefilled again; logprob: the mean of its tokens, where they are wanted."""

    reason: str
    stop_text: str | None
    prompt_tokens: int
    cached_tokens: int
    stats: DecodeStats
    seconds_to_first: float
    seconds: float
    logprob: float = 0.0

    def figures(self) -> dict[str, Any]:
        """What every form adds to its counts: tau, tokens per second, rounds by what they verified."""
        return {
            "tau": round(self.stats.tau, 3),
            "tokens_per_second": round(self.stats.tokens_per_second, 1),
            "seconds_to_first_token": round(self.seconds_to_first, 3),
            "rounds": self.stats.chosen,
        }


def joined(all: Sequence[Finished], each: int = 1) -> Finished:
    """Of the texts of one request, `each` of which in a row had the same prompt: that counts once. Speeds are a text's."""
    prompts = all[::each]
    return Finished(
        all[0].reason,
        all[0].stop_text,
        sum(one.prompt_tokens for one in prompts),
        sum(one.cached_tokens for one in prompts),
        merged([one.stats for one in all]),
        min(one.seconds_to_first for one in all),
        max(one.seconds for one in all),
    )


Event = Progress | Finished | ApiError


@dataclass(eq=False)
class Job:
    """One text under way. `tell` is called in the engine's thread, the last time with Finished or an ApiError. deadline: in
    seconds of time.perf_counter(); None: none. after: the one with the same prompt that is read first; shared: it is one."""

    request: Request
    tell: Callable[[Event], None]
    came: float = field(default_factory=time.perf_counter)
    cancelled: threading.Event = field(default_factory=threading.Event)
    deadline: float | None = None
    after: "Job | None" = None
    shared: bool = False

    @property
    def repeatable(self) -> bool:
        """A sampled text with a seed: it must not depend on what is cached, or decoded beside it."""
        sampling = self.request.sampling
        return not sampling.greedy and sampling.seed is not None

    @property
    def over(self) -> ApiError | None:
        """Why it should not go on, if it should not."""
        if self.cancelled.is_set():
            return ApiError(499, "the client has gone", code="cancelled")
        if self.deadline is not None and time.perf_counter() > self.deadline:
            return ApiError(504, f"not done after {self.deadline - self.came:g} seconds (--request-timeout)", code="timeout")
        return None


def jobs_of(requests: Sequence[Request]) -> list[Job]:
    """Of the texts of one request. Where several have a prompt in common it is read once: the others wait for that."""
    jobs = [Job(request, _nobody) for request in requests]
    for job in jobs:
        first = next(each for each in jobs if each.request.prompt == job.request.prompt)
        whole = job.request.logprobs is not None and job.request.logprobs.of_prompt
        if first is not job and not job.repeatable and not whole:
            job.after, first.shared = first, True
    return jobs


def _nobody(what: Event) -> None:
    """Until it is submitted."""
