"""Fixtures shared by all tests."""

import fcntl
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def no_measured_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Costs of rounds are measured by each test for itself, unless it names another directory."""
    monkeypatch.setenv("MTPD_CACHE_DIR", os.devnull)


@pytest.fixture(scope="session")
def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all workers of this run see."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if hasattr(request.config, "workerinput") else base) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture
def ring() -> Iterator[None]:
    """The fixed ports of mlx.launch's ring, which one test of this machine has at a time."""
    with (Path(tempfile.gettempdir()) / "mtpd-tests-ring.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tiny import write_base

    return write_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Path:
    from tiny import write_checkpoint

    return write_checkpoint(tmp_path_factory.mktemp("heads"), tiny_base)


@pytest.fixture
def stop_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Ctrl-C in place of step number n."""
    from mtpd_mlx.train.step import Stepper

    def install(number: int) -> None:
        step, calls = Stepper.step, [0]

        def stopped(self: Stepper, batches: list) -> tuple:
            calls[0] += 1
            if calls[0] == number:
                raise KeyboardInterrupt
            return step(self, batches)

        monkeypatch.setattr(Stepper, "step", stopped)

    return install


@pytest.fixture
def text_data(tmp_path: Path) -> Path:
    """A data folder of short cyclic texts."""
    import json

    folder = tmp_path / "data"
    folder.mkdir()
    for name, count in (("train", 40), ("valid", 6)):
        rows = [{"text": "abcdefgh ijklm nopq " * 3 + str(i % 7)} for i in range(count)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return folder
