"""What rank 0 answers, of whatever kind, reaches every rank: none waits for ever."""

import threading
from typing import Any

import numpy as np
import pytest

from mtpd_mlx.ranks.world import World


class Exchange:
    """Two ranks in two threads that add up arrays."""

    def __init__(self) -> None:
        self.barrier, self.parts = threading.Barrier(2, timeout=20), [np.zeros(0)] * 2

    def sum(self, rank: int, values: np.ndarray) -> np.ndarray:
        self.parts[rank] = values
        self.barrier.wait()
        total = self.parts[0] + self.parts[1]
        self.barrier.wait()
        return total


def answers(make: Any, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What from_lead returns, or raises, on rank 0 and rank 1."""
    exchange, found = Exchange(), [None, None]

    def sum_now(world: World, values: np.ndarray) -> np.ndarray:
        return exchange.sum(world.rank, values)

    monkeypatch.setattr(World, "_sum_now", sum_now)

    def run(rank: int) -> None:
        try:
            found[rank] = World(rank, 2).from_lead(make)
        except Exception as error:
            found[rank] = error  # type: ignore[call-overload]

    threads = [threading.Thread(target=run, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_a_value(monkeypatch: pytest.MonkeyPatch) -> None:
    assert answers(lambda: {"a": [1, "é"]}, monkeypatch) == [{"a": [1, "é"]}] * 2


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("--out: in use"), "--out: in use"),
        (FileNotFoundError(2, "No such file", "x"), "[Errno 2] No such file: 'x'"),
        (RuntimeError("no memory\nat all"), "RuntimeError: no memory"),
        (KeyError("name"), "KeyError: 'name'"),
        (MemoryError(), "MemoryError"),
        (ImportError("wandb is not installed"), "ImportError: wandb is not installed"),
    ],
)
def test_an_error_of_any_kind(error: Exception, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise error

    for found in answers(fail, monkeypatch):
        assert isinstance(found, ValueError) and str(found) == said


def test_what_json_cannot_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    for found in answers(lambda: {1, 2}, monkeypatch):
        assert isinstance(found, ValueError) and "set is not JSON serializable" in str(found)
