"""The files that --resume and --cache read: damaged ones are one line (tools/fuzz_loaders.py does many)."""

from pathlib import Path

import pytest
from fuzzing import attack, attempt, ruined
from state_files import make_state, state_targets

FEW, MANY = range(12), range(12, 60)  # seeds
NAMES = ["run, options", "run, progress", "run, parameters", "run, optimiser", "run, log", "cache, read", "cache, resumed"]
NAMES += ["distilled, options", "distilled, rows"]
LOG = "run, log"  # what cannot be read of it is left out
ROWS, NO_LINES = "distilled, rows", ("empty", "cut in half", "nested too deep")  # half lines, which a killed run leaves


@pytest.fixture(scope="module")
def state(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_state(tmp_path_factory.mktemp("state") / "made", tiny_base)


@pytest.mark.parametrize("name", [name for name in NAMES if name != LOG])
def test_ruined_state_is_refused_in_one_line(name: str, state: dict[str, Path], tmp_path: Path) -> None:
    folder, file, load = state_targets(state)[name]
    for kind, bad in ruined((folder / file).read_bytes()).items():
        found = attempt(folder, file, load, bad, tmp_path / "copy", kind)
        assert found == ("accepted" if name == ROWS and kind in NO_LINES else "refused"), kind


@pytest.mark.parametrize("seeds", [FEW, pytest.param(MANY, marks=pytest.mark.slow)], ids=["few", "many"])
@pytest.mark.parametrize("name", NAMES)
def test_damaged_state_is_one_line(name: str, seeds: range, state: dict[str, Path], tmp_path: Path) -> None:
    """Taken up, or refused; attack() fails for everything else."""
    every = state_targets(state)
    assert list(every) == NAMES
    folder, file, load = every[name]
    load(folder)  # whole, it is accepted
    for seed in seeds:
        attack(folder, file, load, seed, tmp_path / "copy")
