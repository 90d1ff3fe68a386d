"""`mtpd` runs as a user starts them, short ones, and what they say and leave: the line of an error, the log, arrays."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mtpd_mlx.model.load_save import load_arrays
from mtpd_mlx.train.loop import LOG_NAME

SHORT: dict[str, Any] = {
    "iters": 6,
    "batch_size": 2,
    "max_seq_length": 24,
    "num_heads": 2,
    "warmup": 0,
    "steps_per_report": 1,
    "steps_per_eval": 3,
    "save_every": 2,
    "val_batches": 1,
}


def flags(**changes: Any) -> list[str]:
    """The options of a short run as on a command line, some of them changed, or left out (None)."""
    return [p for n, v in (SHORT | changes).items() if v is not None for p in (f"--{n.replace('_', '-')}", str(v))]


def train_args(base: Path, data: Path, out: Path, *extra: str, **changes: Any) -> list[str]:
    """A short `mtpd train`; of options given twice the last one, in `extra`, holds."""
    return ["train", "--model", str(base), "--data", str(data), "--out", str(out), *flags(**changes), *extra]


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line with which the command was refused."""
    lines = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert len(lines) == 1, lines
    return lines[0]


def one_line(capsys: pytest.CaptureFixture[str], *words: str) -> None:
    line = error_line(capsys)
    assert all(word in line for word in words), line


def refused(call: Callable[[], Any], *words: str) -> None:
    """A ValueError of one line that holds the words."""
    with pytest.raises(ValueError) as error:
        call()
    assert "\n" not in str(error.value) and all(word in str(error.value) for word in words), error.value


def how_to_go_on(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The arguments of the command that an interrupted one names."""
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("interrupted"))
    return line.split("mtpd ", 1)[1].split()


def logged(out: Path) -> list[dict[str, Any]]:
    """The rows of a run's log: of steps, with "loss", and of validations, with "valid"."""
    return [json.loads(line) for line in (out / LOG_NAME).read_text().splitlines()]


def figures(out: Path) -> list[list[float]]:
    """Every figure that does not depend on time: of each step, then of each validation."""
    rows = logged(out)
    steps = [[r["iter"], r["loss"], r["main_loss"], *r["head_loss"], *r["car"], r["grad_norm"]] for r in rows if "loss" in r]
    valid = [(r["iter"], r["valid"]) for r in rows if "valid" in r]
    return steps + [[i, v["main_loss"], *v["head_loss"], *v["car"], v["tau"]] for i, v in valid]


def assert_same_run(one: Path, other: Path, rtol: float = 0, atol: float = 1e-6) -> None:
    """The same figures, step by step."""
    for a, b in zip(figures(one), figures(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)


def assert_same_heads(one: Path, other: Path, atol: float = 1e-6) -> None:
    a, b = (load_arrays(folder / "heads.safetensors") for folder in (one, other))
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_allclose(np.array(a[name]), np.array(b[name]), rtol=0, atol=atol, err_msg=name)
