"""`Engine`: one thread that decodes requests over a batch of either runtime, as its scheduler says.
Called by serving/app.py and the forms.

The model is opened in that thread, and nothing else touches it.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from mtpd_mlx.serving.errors import ApiError
from mtpd_mlx.serving.jobs import Event as Event
from mtpd_mlx.serving.jobs import Finished as Finished
from mtpd_mlx.serving.jobs import Job as Job
from mtpd_mlx.serving.jobs import Progress as Progress
from mtpd_mlx.serving.jobs import Request as Request
from mtpd_mlx.serving.prefix_cache import PrefixCache
from mtpd_mlx.serving.scheduler import Scheduler, SeeRound
from mtpd_mlx.serving.trace import NO_TRACE, Trace
from mtpd_mlx.speculative.batch import Batch
from mtpd_mlx.speculative.bound_rows import BoundRows
from mtpd_mlx.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)


class Runtime(Protocol):
    """An opened model. `batch`: rows of it, of which so many are decoded at a time; `bound`: those of bound texts. vocab_size:
    logits of a token."""

    tokenizer: Tokenizer
    capacity: int
    vocab_size: int
    info: dict[str, Any]

    def batch(self, most: int) -> Batch: ...

    def bound(self, most: int) -> BoundRows: ...


@dataclass(frozen=True)
class EngineOptions:
    """most_waiting: requests beyond those that run; more are refused (429). most_running: texts decoded at a time. timeout:
    seconds of a request, waiting included; None: any. prefix_bytes: memory for texts that have ended and lost their rows."""

    most_waiting: int
    most_running: int = 16
    timeout: float | None = None
    trace: Trace = NO_TRACE
    prefix_bytes: int = 0


class Engine:
    """`open_model` runs in the engine's thread. `see_round` is called there after every round, if it is set."""

    def __init__(self, open_model: Callable[[], Runtime], options: EngineOptions):
        self._open_model, self._options = open_model, options
        self._waiting = deque[Job]()
        self._changed = threading.Condition()  # guards _waiting and _ending
        self._ready = threading.Event()
        self._failure: BaseException | None = None
        self._ending = False
        self._scheduler: Scheduler | None = None
        self.integrity: str = "ok"  # or what the last check found
        self.see_round: SeeRound | None = None
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
        """Requests that have no row yet."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Requests that have one."""
        return 0 if self._scheduler is None else len(self._scheduler.running)

    @property
    def resting(self) -> int:
        """Texts that have ended and are cached."""
        return 0 if self._scheduler is None else len(self._scheduler.resting)

    @property
    def prefixes(self) -> PrefixCache | None:
        return None if self._scheduler is None else self._scheduler.prefixes

    def submit(self, *jobs: Job) -> None:
        """All of them, or none: ApiError 429 where too many wait, 503 while the server ends."""
        if self._options.timeout is not None:
            for job in jobs:
                job.deadline = job.came + self._options.timeout
        with self._changed:
            if self._ending:
                raise shutting_down()
            free = 0 if self._scheduler is None else self._scheduler.most - self.running
            if len(self._waiting) + len(jobs) > self._options.most_waiting + free:
                message = f"{self._options.most_waiting} requests are waiting already; try again later"
                raise ApiError(429, message, code="queue_full")
            self._waiting.extend(jobs)
            self._changed.notify()

    def end(self, seconds: float = 10.0) -> None:
        """Refuses new requests, calls those under way off and waits for the thread."""
        with self._changed:
            self._ending = True
            waiting, self._waiting = list(self._waiting), deque()
            self._changed.notify()
        for job in waiting:
            job.tell(shutting_down())
        for text in list(self._scheduler.running if self._scheduler else ()):
            text.job.cancelled.set()
        self._thread.join(seconds)

    def _run(self) -> None:
        try:
            self.runtime = self._open_model()
            most, trace = self._options.most_running, self._options.trace
            prefix_bytes = self._options.prefix_bytes
            batch, bound = self.runtime.batch(most), self.runtime.bound(most)
            self._scheduler = Scheduler(batch, self.runtime.tokenizer, most, trace, self._saw, bound, prefix_bytes)
        except BaseException as error:
            self._failure = error
            return
        finally:
            self._ready.set()
        while self._next():
            self._scheduler.step()
        self._scheduler.stop(shutting_down())

    def _next(self) -> bool:
        """Waits until there is something to do, and lets requests in; False at the end."""
        scheduler = self._scheduler
        assert scheduler is not None
        if not scheduler.running and not self._waiting:
            self._check(scheduler)
        with self._changed:
            while not self._ending and not self._waiting and not scheduler.running:
                self._changed.wait()
            if self._ending:
                return False
            over = [(job, error) for job in self._waiting if (error := job.over) is not None]
            for job, _ in over:
                self._waiting.remove(job)
            coming = list[Job]()
            for job in list(self._waiting):  # in the order they came, but for kinds that have no room
                if job.after not in self._waiting and scheduler.takes(job, coming):
                    self._waiting.remove(job)
                    coming.append(job)
        for job, error in over:
            job.tell(error)
        for job in coming:
            scheduler.admit(job)
        return True

    def _check(self, scheduler: Scheduler) -> None:
        """With nothing under way every row must be free or at rest, and as long as it says. Else all are dropped."""
        try:
            scheduler.check()
        except RuntimeError as error:
            self.integrity = str(error)
            logger.error("caches: %s; they are emptied", error)
            scheduler.forget()

    def _saw(self, rows: int, drafts: int | None) -> None:
        if self.see_round is not None:
            self.see_round(rows, drafts)


def shutting_down() -> ApiError:
    return ApiError(503, "the server is shutting down", code="shutting_down")
