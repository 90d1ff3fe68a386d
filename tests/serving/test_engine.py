"""The engine: who is cancelled stops within a round, a queue has an end, a fault costs one request."""

import queue
import threading
import time
from typing import Any

import pytest
from helpers.batches import Letters
from helpers.bound import hashed_rows
from helpers.fakes import ScriptedModel, hashed

from mtpd_mlx.serving.engine import Engine, EngineOptions, Event, Finished, Job, Progress, Request
from mtpd_mlx.serving.errors import ApiError
from mtpd_mlx.speculative.bound_rows import BoundRows
from mtpd_mlx.speculative.one_by_one import OneByOne
from mtpd_mlx.speculative.rounds import StepBackend
from mtpd_mlx.speculative.sampling import Sampling


class Scripted:
    """A runtime of scripted texts. `gate` holds every pass of the model back until it is released."""

    def __init__(self) -> None:
        self.tokenizer: Any = Letters()
        self.capacity, self.vocab_size, self.info = 4096, 97, {}
        self.gate, self.passes, self.models = threading.Semaphore(0), 0, list[ScriptedModel]()
        self.fault: Exception | None = None

    def batch(self, most: int) -> OneByOne:
        return OneByOne(self.decoder, 2)

    def bound(self, most: int) -> BoundRows:
        return hashed_rows(most)

    def decoder(self, sampling: Sampling) -> StepBackend:
        def target(tokens: Any) -> int:
            if self.fault is not None:
                raise self.fault
            return hashed(tokens)

        model = ScriptedModel(target, iter(lambda: 1, None), 2, self.capacity)
        verify = model.verify

        def gated(tokens: Any) -> Any:
            self.gate.acquire()
            self.passes += 1
            return verify(tokens)

        model.verify = gated  # type: ignore[method-assign]
        self.models.append(model)
        return StepBackend(model)


def job(prompt: list[int], max_tokens: int = 8, **options: Any) -> tuple[Job, "queue.Queue[Event]"]:
    told = queue.Queue[Event]()
    return Job(Request(prompt, Sampling(), max_tokens, **options), told.put), told


def ending(told: "queue.Queue[Event]") -> Event:
    while isinstance(what := told.get(timeout=20), Progress):
        pass
    return what


def test_a_request_that_is_called_off_stops_within_a_round() -> None:
    runtime = Scripted()
    engine = Engine(lambda: runtime, EngineOptions(4))
    engine.start()
    long, told = job([1, 2, 3], 1000)
    engine.submit(long)
    for _ in range(3):
        runtime.gate.release()
    while runtime.passes < 3:
        pass
    long.cancelled.set()
    runtime.gate.release(2)
    what = ending(told)
    assert isinstance(what, ApiError) and what.code == "cancelled" and runtime.passes <= 4
    runtime.gate.release(1000)
    again, told = job([1, 2, 3], 6)
    engine.submit(again)
    done = ending(told)
    assert isinstance(done, Finished) and done.cached_tokens == 2  # what was cached is as good as new
    engine.end()


def test_a_long_prompt_is_called_off_between_its_chunks() -> None:
    runtime = Scripted()
    engine = Engine(lambda: runtime, EngineOptions(4))
    engine.start()
    long, told = job([i % 90 for i in range(3000)])
    engine.submit(long)
    runtime.gate.release()
    while runtime.passes < 1:
        pass
    long.cancelled.set()
    runtime.gate.release(2)
    assert isinstance(what := ending(told), ApiError) and what.code == "cancelled"
    assert runtime.passes <= 2
    runtime.gate.release(1000)
    engine.end()


def test_the_queue_has_an_end_and_so_has_the_server() -> None:
    runtime = Scripted()
    engine = Engine(lambda: runtime, EngineOptions(2))
    engine.start()
    jobs = [job([1, 2], 5) for _ in range(3)]
    engine.submit(jobs[0][0])
    while not engine.running:
        pass
    for waiting, _ in jobs[1:]:
        engine.submit(waiting)
    with pytest.raises(ApiError, match="2 requests are waiting") as error:
        engine.submit(job([1], 5)[0])
    assert error.value.status == 429
    runtime.gate.release(1000)
    assert all(isinstance(ending(told), Finished) for _, told in jobs)
    engine.end()
    with pytest.raises(ApiError, match="shutting down"):
        engine.submit(job([1], 5)[0])


def test_requests_that_take_too_long_end_where_they_are() -> None:
    runtime = Scripted()
    engine = Engine(lambda: runtime, EngineOptions(4, timeout=0.1))
    engine.start()
    runs, waits = job([1, 2, 3], 1000), job([4, 5], 5)
    for each, _ in (runs, waits):
        engine.submit(each)
    runtime.gate.release(3)
    time.sleep(0.15)
    runtime.gate.release(1)
    for _, told in (runs, waits):
        what = ending(told)
        assert isinstance(what, ApiError) and what.status == 504 and "0.1 seconds" in what.message
    runtime.gate.release(1000)
    engine.end()


def test_a_fault_costs_one_request() -> None:
    runtime = Scripted()
    runtime.gate.release(1000)
    engine = Engine(lambda: runtime, EngineOptions(2))
    engine.start()
    runtime.fault = RuntimeError("the device is gone")
    first, told = job([1, 2], 5)
    engine.submit(first)
    what = ending(told)
    assert isinstance(what, ApiError) and what.status == 500 and "the device is gone" in what.message
    runtime.fault = None
    second, told = job([1, 2], 5)
    engine.submit(second)
    assert isinstance(ending(told), Finished) and len(runtime.models) == 2
    engine.end()


def test_what_opening_raised_is_raised() -> None:
    def broken() -> Any:
        raise ValueError("no such folder")

    with pytest.raises(ValueError, match="no such folder"):
        Engine(broken, EngineOptions(2)).start()
