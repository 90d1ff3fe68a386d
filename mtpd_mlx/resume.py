"""Resume points: `resume-<iteration>/` folders beside the checkpoint. Written whole, then renamed; the newest is kept."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtpd_mlx.checkpoint import load_arrays, save_arrays
from mtpd_mlx.mlx_runtime import mx

PREFIX = "resume-"


@dataclass
class ResumePoint:
    params: dict[str, mx.array]
    optimizer: dict[str, mx.array]
    progress: dict[str, Any]


def _points(out: Path) -> list[int]:
    names = [p.name.removeprefix(PREFIX) for p in out.glob(f"{PREFIX}*") if p.is_dir()]
    return sorted(int(n) for n in names if n.isdigit())


def latest_resume_point(out: Path) -> int | None:
    return max(_points(out), default=None)


def save_resume_point(out: Path, point: ResumePoint) -> None:
    iteration = point.progress["iteration"]
    final, temporary = out / f"{PREFIX}{iteration}", out / f".{PREFIX}{iteration}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    save_arrays(temporary / "params.safetensors", point.params)
    save_arrays(temporary / "optimizer.safetensors", point.optimizer)
    (temporary / "progress.json").write_text(json.dumps(point.progress))
    shutil.rmtree(final, ignore_errors=True)
    temporary.rename(final)
    for older in _points(out):
        if older != iteration:
            shutil.rmtree(out / f"{PREFIX}{older}", ignore_errors=True)


def load_resume_point(out: Path, iteration: int) -> ResumePoint:
    """ValueError in one line when a file of it is missing or damaged."""
    folder = out / f"{PREFIX}{iteration}"
    try:
        progress = json.loads((folder / "progress.json").read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder}: damaged resume point ({error})") from error
    return ResumePoint(load_arrays(folder / "params.safetensors"), load_arrays(folder / "optimizer.safetensors"), progress)
