"""The folder of a run: who may begin there, what is removed and when, and what --resume needs.
Called by train/run.py, train/extend.py and the training commands.

Heads that lie there stay until the run writes its own: one that fails, or ends no better than it began, leaves them alone.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtpd_mlx.checkpoints.format import CONFIG_NAME, WEIGHTS_NAME, BaseRef, read_config
from mtpd_mlx.checkpoints.run_files import LOG_NAME, OPTIONS_NAME, RESUME_PREFIX, forget_stages, remove_resume_points
from mtpd_mlx.files import publish
from mtpd_mlx.files.atomic import discard, leftovers, write_json
from mtpd_mlx.files.json_object import read_json_object
from mtpd_mlx.files.lock import locked
from mtpd_mlx.options.resume import resumed
from mtpd_mlx.options.schema import read_values
from mtpd_mlx.options.train import RunConfig, TrainOptions

BASE_NAME, ADAPTERS_NAME = "base", "adapters"
PARTS = (BASE_NAME, ADAPTERS_NAME)  # what joint training writes beside the heads
TRAINED_PARTS = {"heads": None, "joint": BASE_NAME, "lora": ADAPTERS_NAME}  # where what of the base trains is written
TEMPORARY = (f"{RESUME_PREFIX}*", f"*{WEIGHTS_NAME}", "*.json", LOG_NAME)


def check_free(out: Path, overwrite: bool, part: str | None = None) -> None:
    """ValueError where the folder is in use and not to be overwritten. `part`: of PARTS, what will be written too. Finishes
    first what a killed run was putting in place. OSError where the folder cannot be written."""
    if not out.exists():
        return
    with locked(out):
        publish.finish(out)
        if not overwrite and ((out / CONFIG_NAME).exists() or any(out.glob(f"{RESUME_PREFIX}*"))):
            raise ValueError(f"--out {out}: holds a checkpoint already; use --resume, --overwrite or another folder")
        if part is not None and not overwrite and (out / part).exists():
            raise ValueError(f"--out {out}: holds a folder {part!r}, where what is trained goes; use --overwrite or another")


def tidy(out: Path) -> None:
    """Finishes what a killed run was putting in place, and removes what it was writing."""
    publish.finish(out)
    lives = [out / name for name in (*PARTS, WEIGHTS_NAME, CONFIG_NAME)]
    for path in [kind(live) for live in lives for kind in (publish.staged, publish.replaced)]:
        discard(path)
    for leftover in [*leftovers(out, *TEMPORARY), *out.glob(f".[0-9]*{WEIGHTS_NAME}*")]:  # the second: of older versions
        discard(leftover)


def begin(out: Path, options: dict[str, Any], identity: dict[str, str], extends: bool = False) -> None:
    """From here on the folder is that of a new run: the state of an earlier one goes, its heads stay. `extends`: the run is the
    last stage of an extension, whose other stages stay too."""
    remove_resume_points(out)
    if not extends:
        begun_with = options.get("init_heads")
        forget_stages(out, None if begun_with is None else Path(begun_with))
    tidy(out)
    (out / LOG_NAME).unlink(missing_ok=True)  # a run killed before its first resume point leaves one
    write_json(out / OPTIONS_NAME, options | {"identity": identity})


def finish(out: Path) -> None:
    """The run has come to its end: what only --resume needs goes."""
    run = read_run(out)
    write_json(out / OPTIONS_NAME, run.options | {"identity": run.identity, "finished": True})
    remove_resume_points(out)


def own_parts(out: Path) -> set[str]:
    """Which of PARTS the heads in `out` were trained with, and name: theirs alone. A model or adapter that a user put there is
    none."""
    try:
        config = read_config(out)
    except ValueError:
        return set()
    training = config.record.get("training")
    trained = TRAINED_PARTS.get(str(training.get("train"))) if isinstance(training, dict) else None
    return parts_of(config.base) & {trained}


def parts_of(base: BaseRef) -> set[str]:
    """Which of PARTS a checkpoint with this base names as its own."""
    return {part for part in PARTS if f"./{part}" in (base.id, base.adapter)}


@dataclass(frozen=True)
class SavedRun:
    """options: by name; identity: of base, rows and frozen heads (older versions left it out); finished: to its end."""

    options: dict[str, Any]
    identity: dict[str, str]
    finished: bool


def read_run(out: Path) -> SavedRun:
    """What train_options.json says. ValueError in one line where it is not there or not one."""
    file = out / OPTIONS_NAME
    if not file.is_file():
        raise ValueError(f"--resume: {out} holds no interrupted run ({OPTIONS_NAME} missing)")
    values = read_json_object(file, f"--resume: {file}")
    identity, finished = values.pop("identity", {}), values.pop("finished", False)
    if not isinstance(identity, dict) or not all(isinstance(v, str) for v in identity.values()):
        raise ValueError(f"{file}: identity: damaged, expected names of digests")
    if type(finished) is not bool:
        raise ValueError(f"{file}: finished: got {str(finished)[:40]!r}, expected true or false")
    return SavedRun(values, identity, finished)


def check_identity(out: Path, identity: dict[str, str]) -> None:
    """ValueError where the run in `out` was begun with another base, other rows or other heads."""
    saved = read_run(out).identity
    for name, now in identity.items():
        if saved and (then := saved.get(name, "none")) != now:
            raise ValueError(
                f"--resume: {name.replace('_', ' ')}: not what the run in {out} was begun with "
                f"(digest {then[:19]}..., now {now[:19]}...)"
            )


def take_up(out: Path, identity: dict[str, str]) -> None:
    """The run in `out` goes on: checks that it stands on the same, and removes what its killed process was writing."""
    check_identity(out, identity)
    tidy(out)


def resumed_options(file_values: dict[str, Any], flags: dict[str, Any]) -> TrainOptions:
    """The options that the interrupted run in --out was started with."""
    given = read_values(TrainOptions.classes(), file_values, flags)
    return taken_up(Path(given.get("out", RunConfig.out)), given)


def taken_up(folder: Path, given: dict[str, Any], finished: bool = False) -> TrainOptions:
    """The options of the run in `folder`; values that say otherwise are refused, and so is a run that came to its end, unless
    `finished`."""
    saved = read_run(folder)
    if saved.finished and not finished:
        raise ValueError(
            f"--resume: the run in {folder} is finished; begin another with --init-heads {folder} and another --out"
        )
    return TrainOptions(*resumed(TrainOptions.classes(), saved.options, given, out=folder))
