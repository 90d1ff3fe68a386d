"""`Engine`: one thread that decodes requests in the order they came, over a decoder of either runtime.

The model is opened in that thread, and nothing else touches it. The texts of the last requests stay cached: a request that
begins as one of them did prefills only what is new.
"""

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from mtpd_mlx.serving.answer import Answer, Piece
from mtpd_mlx.serving.errors import ApiError
from mtpd_mlx.speculative.cancel import Cancelled, cancellable
from mtpd_mlx.speculative.loop import generate
from mtpd_mlx.speculative.protocol import Backend
from mtpd_mlx.speculative.sampling import Sampling
from mtpd_mlx.speculative.stats import DecodeStats
from mtpd_mlx.text.tokenizer import Tokenizer

KEPT = 2  # decoders (each with its caches) that stay open: most clients ask with one or two settings


class Runtime(Protocol):
    """An opened model. `decoder`: a new one with empty caches, that samples so."""

    tokenizer: Tokenizer
    capacity: int
    info: dict[str, Any]

    def decoder(self, sampling: Sampling) -> Backend: ...


@dataclass(frozen=True)
class Request:
    """prompt: token ids; stop: texts that end the answer, which are no part of it."""

    prompt: list[int]
    sampling: Sampling
    max_tokens: int
    stop: tuple[str, ...] = ()
    stream: bool = False


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


@dataclass
class Job:
    """One request under way. `tell` is called in the engine's thread, the last time with Finished or an ApiError."""

    request: Request
    tell: Callable[[Event], None]
    came: float = field(default_factory=time.perf_counter)
    cancelled: threading.Event = field(default_factory=threading.Event)


@dataclass
class _Open:
    """A decoder, and the tokens that it has cached."""

    sampling: Sampling
    backend: Backend
    held: list[int] = field(default_factory=list)


class Engine:
    """`open_model` runs in the engine's thread. `most_waiting`: requests beyond the one that runs; more are refused (429)."""

    def __init__(self, open_model: Callable[[], Runtime], most_waiting: int):
        self._open_model, self._jobs = open_model, queue.Queue[Job | None](most_waiting)
        self._open: list[_Open] = []
        self._ready = threading.Event()
        self._failure: BaseException | None = None
        self._ending = False
        self.running: Job | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> Runtime:
        """Waits until the model is open. What opening it raised is raised here."""
        self._thread.start()
        self._ready.wait()
        if self._failure is not None:
            raise self._failure
        return self.runtime

    @property
    def waiting(self) -> int:
        return self._jobs.qsize()

    def submit(self, job: Job) -> None:
        """ApiError 429 where too many wait, 503 while the server ends."""
        if self._ending:
            raise ApiError(503, "the server is shutting down", code="shutting_down")
        try:
            self._jobs.put_nowait(job)
        except queue.Full:
            message = f"{self._jobs.maxsize} requests are waiting already; try again later"
            raise ApiError(429, message, code="queue_full") from None

    def end(self, seconds: float = 10.0) -> None:
        """Refuses new requests, cancels those under way and waits for the thread."""
        self._ending = True
        if (job := self.running) is not None:
            job.cancelled.set()
        while True:
            try:
                waiting = self._jobs.get_nowait()
            except queue.Empty:
                break
            if waiting is not None:
                waiting.tell(ApiError(503, "the server is shutting down", code="shutting_down"))
        self._jobs.put(None)
        self._thread.join(seconds)

    def _run(self) -> None:
        try:
            self.runtime = self._open_model()
        except BaseException as error:
            self._failure = error
            return
        finally:
            self._ready.set()
        while (job := self._jobs.get()) is not None:
            self.running = job
            try:
                self._serve(job)
            except Cancelled:
                job.tell(ApiError(499, "the client has gone", code="cancelled"))
            except ApiError as error:
                job.tell(error)
            except Exception as error:  # the next request may fare better: its caches are new
                self._open.clear()
                job.tell(ApiError(500, f"{type(error).__name__}: {error}", code="internal_error"))
            finally:
                self.running = None

    def _serve(self, job: Job) -> None:
        request, runtime = job.request, self.runtime
        opened = self._decoder(request.sampling)
        backend, prompt = opened.backend, request.prompt
        common = min(common_length(prompt, opened.held), len(prompt) - 1)
        answer, stats = Answer(runtime.tokenizer, request.stop), DecodeStats(backend.num_draft_tokens)
        first: float | None = None
        said = list(prompt)
        with cancellable(job.cancelled.is_set):
            try:
                backend.rewind_to(common)
                chunks = generate(
                    backend,
                    prompt[common:],
                    max_tokens=request.max_tokens,
                    eos_token_ids=runtime.tokenizer.eos_token_ids,
                    stop=answer.see,
                )
                for chunk in chunks:
                    stats.add(chunk)
                    said += chunk.tokens
                    first = time.perf_counter() - job.came if first is None else first
                    if pieces := answer.take(chunk.num_drafted):
                        job.tell(Progress(pieces))
                    if job.cancelled.is_set():
                        raise Cancelled
            finally:
                opened.held = said[: backend.length]
        if rest := answer.finish():
            job.tell(Progress([(rest, False)]))
        reason = "stop" if chunk.finish_reason == "stop" else "length"
        seconds = time.perf_counter() - job.came
        job.tell(Finished(reason, answer.stopped_by, len(prompt), common, stats, first or seconds, seconds))

    def _decoder(self, sampling: Sampling) -> _Open:
        """One that samples so, with what it holds: the last used of them, or a new one. A seeded text begins afresh, so that it
        is the same one every time."""
        for opened in self._open if sampling.greedy or sampling.seed is None else ():
            if opened.sampling == sampling or (opened.sampling.greedy and sampling.greedy):
                self._open.remove(opened)
                self._open.insert(0, opened)
                return opened
        self._open = self._open[: KEPT - 1]
        opened = _Open(sampling, self.runtime.decoder(sampling))
        self._open.insert(0, opened)
        return opened


def common_length(a: list[int], b: list[int]) -> int:
    """Length of the common beginning."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
