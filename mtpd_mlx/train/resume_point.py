"""`save_resume_point`, `load_resume_point`: `resume-<iteration>/` folders, each replaced whole; the newest is kept.
Called by train/loop.py, run.py and extend.py."""

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mtpd_mlx.checkpoints.run_files import RESUME_PREFIX
from mtpd_mlx.files.atomic import replacing_folder, write_json
from mtpd_mlx.files.json_object import read_json_object
from mtpd_mlx.model.load_save import load_arrays, save_arrays
from mtpd_mlx.model.runtime import mx

TEACHER_NAME = "teacher.safetensors"


@dataclass
class Progress:
    """What a run knows about itself; stored in resume points."""

    iteration: int = 0
    best: list[float] | None = None  # what --keep maximises: tau, then minus the heads' loss; or minus the loss
    best_iteration: int | None = None
    start: dict[str, Any] | None = None
    seconds: float = 0.0
    skipped: int = 0  # steps whose gradient was not finite
    best_eval: dict[str, Any] = field(default_factory=dict)
    validated: int = -1  # the iteration of the last validation

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Progress":
        """ValueError names the first thing that is not as a run would have written it."""
        if not values.keys() <= vars(cls()).keys():
            raise ValueError("expected the fields of a run's progress")
        made = cls(**values)
        counts = (made.iteration, made.skipped, made.validated + 1, 0 if made.best_iteration is None else made.best_iteration)
        fits = {
            "a count": all(type(n) is int and n >= 0 for n in counts),
            "seconds": _is_number(made.seconds),
            "best": made.best is None or (isinstance(made.best, list) and bool(made.best) and all(map(_is_number, made.best))),
            "start": made.start is None or _is_evaluation(made.start),
            "best_eval": made.best_eval == {} if made.best is None else _is_evaluation(made.best_eval),
            "best_iteration": (made.best is None) == (made.best_iteration is None) == (made.start is None),
        }
        for name, right in fits.items():
            if not right:
                raise ValueError(f"{name} is not as a run writes it")
        return made


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_evaluation(value: Any) -> bool:
    """Is it what Evaluation.to_dict in train/loop.py gives?"""
    if not isinstance(value, dict) or not all(_is_number(value.get(name)) for name in ("main_loss", "tau")):
        return False
    for name in ("head_loss", "car", "ar"):
        if not isinstance(value.get(name), list) or not all(map(_is_number, value[name])):
            return False
    return len(value["car"]) == len(value["ar"])


@dataclass
class ResumePoint:
    """The state of a run between two steps: parameters, optimiser state, progress; names are those of the model's tree."""

    params: dict[str, mx.array]
    optimizer: dict[str, mx.array]
    progress: Progress
    teacher: dict[str, mx.array] = field(default_factory=dict)  # the average of --teacher ema


def _points(out: Path) -> list[int]:
    names = [p.name.removeprefix(RESUME_PREFIX) for p in out.glob(f"{RESUME_PREFIX}*") if p.is_dir()]
    return sorted(int(n) for n in names if n.isdigit())


def latest_resume_point(out: Path) -> int | None:
    """Iteration of the newest resume point in `out`; None if there is none."""
    return max(_points(out), default=None)


def save_resume_point(out: Path, point: ResumePoint) -> None:
    """Writes resume-<iteration> whole, then removes the older ones."""
    iteration = point.progress.iteration
    with replacing_folder(out / f"{RESUME_PREFIX}{iteration}") as folder:
        save_arrays(folder / "params.safetensors", point.params)
        save_arrays(folder / "optimizer.safetensors", point.optimizer)
        if point.teacher:
            save_arrays(folder / TEACHER_NAME, point.teacher)
        write_json(folder / "progress.json", vars(point.progress))
    for older in _points(out):
        if older != iteration:
            shutil.rmtree(out / f"{RESUME_PREFIX}{older}", ignore_errors=True)


def load_resume_point(out: Path, iteration: int) -> ResumePoint:
    """ValueError in one line when a file of it is missing or damaged."""
    folder = out / f"{RESUME_PREFIX}{iteration}"
    name = f"{folder}: damaged resume point: progress.json"
    values = read_json_object(folder / "progress.json", name)
    try:
        progress = Progress.from_json(values)
        if progress.iteration != iteration:
            raise ValueError(f"iteration is {progress.iteration}, expected {iteration}")
    except (ValueError, TypeError) as error:
        raise ValueError(f"{name}: {error}") from error
    params, optimizer = (load_arrays(folder / f"{part}.safetensors") for part in ("params", "optimizer"))
    teacher = load_arrays(folder / TEACHER_NAME) if (folder / TEACHER_NAME).exists() else {}
    return ResumePoint(params, optimizer, progress, teacher)
