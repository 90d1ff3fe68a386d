"""`replacing`, `replacing_folder`, `write_text`, `write_json`: files and folders that are replaced whole.
Called by every writer of the product.

The policy: what is written gets a temporary name in the same folder, its
contents are synced, it is renamed, and the folder is synced. So a final name never holds half of anything, and what a call has
written outlives a loss of power once the call returns. On any failure, Ctrl-C included, the temporary goes and the old contents
stay. A killed process leaves its temporary: `.NAME.PID.tmp`, or `.NAME.PID.old` for a folder that was being replaced
(`leftovers` finds both).
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def temporary_name(path: Path) -> Path:
    """Where this process writes what will be `path`."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """Gives the temporary path to write; at the end of the block it becomes `file`. The folder must exist. OSError as the disk
    raises it."""
    temporary = temporary_name(file)
    try:
        yield temporary
        put_in_place(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """The same of a whole folder: gives an empty one to fill; makes the parents where they are missing. A folder that is there
    goes last, after the new one is on disk under its name."""
    temporary = temporary_name(folder)
    previous = temporary.with_suffix(".old")
    discard(temporary)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        sync_tree(temporary)
        try:
            if folder.exists():
                folder.rename(previous)
            temporary.rename(folder)
        except BaseException:
            if previous.exists() and not folder.exists():
                previous.rename(folder)
            raise
        sync(folder.parent)
        discard(previous)
    finally:
        discard(temporary)


def put_in_place(temporary: Path, file: Path) -> None:
    """Syncs a file that is written and closed, renames it to `file` in the same file system, and syncs the folder."""
    sync(temporary)
    temporary.replace(file)
    sync(file.parent)


def write_text(file: Path, text: str) -> None:
    """Replaces `file` with UTF-8 text."""
    with replacing(file) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(file: Path, values: Any) -> None:
    """Replaces `file` with indented JSON. TypeError for what JSON cannot hold."""
    write_text(file, json.dumps(values, indent=2) + "\n")


def leftovers(folder: Path, *names: str) -> list[Path]:
    """What killed processes left of files and folders with these names (glob patterns). Older versions wrote `.NAME.tmp`."""
    patterns = [f".{name}.{end}" for name in names for end in ("tmp", "[0-9]*.tmp", "[0-9]*.old")]
    return sorted({path for pattern in patterns for path in folder.glob(pattern)})


def sync(path: Path) -> None:
    """Makes a file's contents, or the renames in a folder, outlive a loss of power. Windows has no such call for folders."""
    if os.name == "nt" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """`sync` of everything in a folder, then of the folder itself."""
    for path in sorted(folder.rglob("*"), reverse=True):
        sync(path)
    sync(folder)


def discard(path: Path) -> None:
    """Removes a file, a folder or a link (not what it leads to), where there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
