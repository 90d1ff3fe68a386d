"""`mtpd train` on two ranks of this machine, started by mlx.launch, whose ring has fixed ports: the same losses as on one, one
process that is lost, input that is refused."""

import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from helpers.runs import assert_same_run, figures, train_args
from tiny import write_checkpoint

from mtpd_mlx.cli import main

pytestmark = pytest.mark.usefixtures("ring")


def launch(*command: str) -> subprocess.Popen:
    launcher = Path(sys.executable).with_name("mlx.launch")
    program = [str(launcher), "-n", "2", "--backend", "ring", sys.executable, "-m", "mtpd_mlx.cli", *command]
    return subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def process_of(rank: int, out: Path) -> int:
    """The process of a run into `out`, as Linux lists it."""
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended since
            ours = str(out).encode() in (folder / "cmdline").read_bytes()
            if ours and f"MLX_RANK={rank}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                return int(folder.name)
    raise AssertionError(f"rank {rank} does not run")


@pytest.mark.parametrize("trained", ["heads", "joint"])
def test_two_ranks_equal_one_process(trained: str, tiny_base: Path, text_data: Path, tmp_path: Path) -> None:
    averaged = ("--train", "joint", "--teacher", "ema", "--heads-reduction", "mean") if trained == "joint" else ()
    four = ("--batch-size", "4", "--grad-accumulation-steps", "2", *averaged)
    assert main(train_args(tiny_base, text_data, tmp_path / "one", *four)) == 0
    process = launch(*train_args(tiny_base, text_data, tmp_path / "two", *four))
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 0, output
    assert output.count("kept step") == 1, output
    assert_same_run(tmp_path / "one", tmp_path / "two", rtol=1e-4, atol=1e-5)
    assert {p.name for p in (tmp_path / "one").iterdir()} == {p.name for p in (tmp_path / "two").iterdir()}


@pytest.mark.slow
def test_lost_rank_stops_the_run_which_resumes_alone(tiny_base: Path, text_data: Path, tmp_path: Path) -> None:
    longer, out = ("--iters", "80", "--steps-per-eval", "80", "--steps-per-report", "10"), tmp_path / "two"
    process = launch(*train_args(tiny_base, text_data, out, *longer))
    deadline = time.time() + 60
    while not (out / "resume-2").is_dir() and time.time() < deadline:
        time.sleep(0.005)
    os.kill(process_of(1, out), 9)
    output = process.communicate(timeout=60)[0]
    # Rank 0 sees the loss itself, or mlx.launch does first and ends it.
    assert "another rank was lost" in output or "interrupted (SIGTERM)" in output, output
    assert "--resume" in output, output
    assert len(list(out.glob("resume-*"))) == 1
    assert main(["train", "--resume", "--out", str(out)]) in (0, 3)  # 3: no better than the start; it did run to its end
    assert max(row[0] for row in figures(out)) == 80


@pytest.mark.parametrize("blocked", ["taken", pytest.param("odd", marks=pytest.mark.slow)])
def test_every_rank_stops_on_bad_input(blocked: str, tiny_base: Path, text_data: Path, tmp_path: Path) -> None:
    """What rank 0 alone sees, and what every rank sees for itself."""
    out = write_checkpoint(tmp_path / "out", tiny_base) if blocked == "taken" else tmp_path / "out"
    process = launch(*train_args(tiny_base, text_data, out, *(("--batch-size", "3") if blocked == "odd" else ())))
    output = process.communicate(timeout=60)[0]
    assert ("holds a checkpoint already" if blocked == "taken" else "expected a multiple of 2") in output
