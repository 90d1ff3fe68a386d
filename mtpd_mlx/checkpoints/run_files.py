"""`forget_run` and the names of what a training run keeps beside its heads.
Called by every writer of other heads into the folder.

Without it a later --resume would go on with the earlier run, and put its heads in the place of the new ones.
"""

import shutil
from pathlib import Path

OPTIONS_NAME, LOG_NAME, STAGES_NAME = "train_options.json", "train_log.jsonl", "stages"
RESUME_PREFIX = "resume-"


def holds_run(out: Path) -> bool:
    """Whether there is a run in `out` that --resume would go on with, one of a stage of an extension included."""
    return bool(resume_points(out)) or any(resume_points(stage) for stage in _stages(out))


def forget_run(out: Path, keep: Path | None = None) -> None:
    """Removes options, log, resume points and stages of a run in `out`; heads stay, and so does the stage `keep`."""
    remove_resume_points(out)
    forget_stages(out, keep)
    for name in (OPTIONS_NAME, LOG_NAME):
        (out / name).unlink(missing_ok=True)


def remove_resume_points(out: Path) -> None:
    for point in resume_points(out):
        shutil.rmtree(point, ignore_errors=True)


def forget_stages(out: Path, keep: Path | None = None) -> None:
    """Removes the folders that an extension trained its first stages in, and nothing that lies beside them. `keep`: the
    checkpoint at work, which may be one of them."""
    stages = [stage for stage in _stages(out) if keep is None or stage.resolve() != keep.resolve()]
    for stage in stages:
        shutil.rmtree(stage, ignore_errors=True)
    if stages and not any((out / STAGES_NAME).iterdir()):
        (out / STAGES_NAME).rmdir()


def resume_points(out: Path) -> list[Path]:
    """The folders with states that --resume can go on from."""
    return [point for point in out.glob(f"{RESUME_PREFIX}*") if point.is_dir()]


def _stages(out: Path) -> list[Path]:
    return [folder for folder in (out / STAGES_NAME).glob("*") if folder.name.isdigit() and (folder / OPTIONS_NAME).is_file()]
