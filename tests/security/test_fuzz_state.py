"""The files that --resume and --cache read: damaged ones are one line (tools/fuzz_loaders.py does many)."""

from pathlib import Path

import pytest
from fuzzing import attack
from state_files import make_state, state_targets

COUNT = 60
NAMES = ["run, options", "run, progress", "run, parameters", "run, optimiser", "run, log", "cache, read", "cache, resumed"]
NAMES += ["distilled, options", "distilled, rows"]
NEVER_REFUSED = ("run, log",)  # what cannot be read of it is left out


@pytest.fixture(scope="module")
def state(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_state(tmp_path_factory.mktemp("state") / "made", tiny_base)


@pytest.mark.parametrize("name", NAMES)
def test_damaged_state_is_one_line(name: str, state: dict[str, Path], tmp_path: Path) -> None:
    every = state_targets(state)
    assert list(every) == NAMES
    folder, file, load = every[name]
    load(folder)  # whole, it is accepted
    outcomes = [attack(folder, file, load, seed, tmp_path / "copy") for seed in range(COUNT)]
    assert "refused" in outcomes or name in NEVER_REFUSED
