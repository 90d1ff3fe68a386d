"""`publish`: files and folders that change together, written and synced under staged names, then renamed.
Called by model/load_save.py, checkpoints and the exporter.

What fails before the renames changes nothing. A process killed among them leaves a list of them, and `finish` does the rest.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from mtpd_mlx.files.atomic import discard, sync, sync_tree, write_json
from mtpd_mlx.files.json_object import read_json_object
from mtpd_mlx.files.lock import locked

LIST_NAME = ".publishing.json"


def staged(path: Path) -> Path:
    """Where what will be `path` is written."""
    return path.with_name(f".new.{path.name}")


def replaced(path: Path) -> Path:
    """Where a folder is moved that another one replaces."""
    return path.with_name(f".old.{path.name}")


def stage_folder(folder: Path, write: Callable[[Path], None]) -> Path:
    """Has `write` fill the staged folder of `folder`, empty at first; where it fails, the staged folder goes."""
    new = staged(folder)
    discard(new)
    new.mkdir(parents=True)
    try:
        write(new)
        sync_tree(new)
    except BaseException:
        discard(new)
        raise
    return new


def publish(folder: Path, names: Sequence[str], hide: str | None = None) -> None:
    """Swaps in what is staged in `folder` under `names`, in this order. `hide`: of them, the one without which a reader sees
    nothing; what it was goes before anything else changes."""
    write_json(folder / LIST_NAME, {"names": list(names), "hide": hide})
    finish(folder)


def finish(folder: Path) -> None:
    """Goes on with the renames that a killed process began in `folder`, where there are any."""
    listing = folder / LIST_NAME
    if not listing.is_file():
        return
    names, hide = _read(listing)
    lives = [folder / name for name in names]
    if hide is not None and staged(folder / hide).exists():
        (folder / hide).unlink(missing_ok=True)
    for live in lives:
        new = staged(live)
        if not new.exists():
            continue  # it is in place
        if new.is_dir() and (live.exists() or live.is_symlink()):
            discard(replaced(live))
            live.rename(replaced(live))
        new.replace(live)
    sync(folder)
    for live in lives:
        discard(replaced(live))
    listing.unlink()


def recover(folder: Path) -> None:
    """`finish` for who reads `folder`. ValueError in one line where another process is at it, or the folder is read-only."""
    if not (folder / LIST_NAME).is_file():
        return
    try:
        with locked(folder):
            finish(folder)
    except OSError as error:
        raise ValueError(
            f"{folder}: an interrupted run has to be finished here first, but the folder cannot be written ({error.strerror})"
        ) from error


def _read(listing: Path) -> tuple[list[str], str | None]:
    """ValueError in one line where it is not a list of names in its own folder."""
    try:
        begun = read_json_object(listing)
        names, hide = begun["names"], begun["hide"]
        named = [*names, *([] if hide is None else [hide])]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{listing}: damaged; what was being written is lost, remove this file") from error
    for name in named:
        if not isinstance(name, str) or name in ("", "..") or Path(name).name != name:
            raise ValueError(f"{listing}: got {str(name)[:40]!r}, expected names of files in this folder")
    return names, hide
