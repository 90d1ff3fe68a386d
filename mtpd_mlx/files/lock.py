"""`locked(folder)`: one run at a time writes into a folder; a second one is refused in one line.
Called by every command that fills a folder.

The system releases it when the process dies, however it dies: a lock file
that is left over locks nothing, counts as no contents (`is_empty`), and goes with the next run. Where the platform or the file
system has no flock (Windows, some network drives), there is no lock and no failure.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

NAME = ".mtpd-lock"
_held: set[Path] = set()  # by this process: extend holds --out while its last stage trains there


@contextmanager
def locked(folder: Path, beside: bool = False) -> Iterator[None]:
    """Holds the folder, which is made where it is missing, and removed again where nothing was put into it. A process that
    holds it may take it again. `beside`: the lock lies in the parent, for who replaces or removes the folder itself.

    ValueError where another process holds it, or it is a file; OSError where the folder cannot be written.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--out {folder}: exists and is not a folder")
    file = folder.with_name(f".{folder.name}{NAME}") if beside else folder / NAME
    place = file.parent.resolve() / file.name
    made = not file.parent.exists()
    file.parent.mkdir(parents=True, exist_ok=True)
    if fcntl is None or place in _held:
        yield
        return
    descriptor = _take(file, folder)
    _held.add(place)
    try:
        yield
    finally:
        _held.remove(place)
        with suppress(OSError):
            file.unlink()
        os.close(descriptor)
        if made:
            with suppress(OSError):  # there is something in it
                file.parent.rmdir()


def check_unlocked(folder: Path) -> None:
    """ValueError where another process holds the folder: for before a base is loaded, which may take long."""
    if folder.exists():
        with locked(folder):
            pass


def is_empty(folder: Path) -> bool:
    """Whether nothing lies in the folder but a lock."""
    return all(path.name == NAME for path in folder.iterdir())


def _take(file: Path, folder: Path) -> int:
    """An open descriptor, whose end is the lock's. A link in the file's place is refused: it is written to."""
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 20).decode(errors="replace").strip()
            os.close(descriptor)
            named = f" (process {holder})" if holder.isdigit() else ""
            raise ValueError(
                f"--out {folder}: another run{named} is writing there; wait for it, or use another folder"
            ) from None
        except OSError:
            pass  # a file system without locks
        if _is(file, descriptor):
            os.truncate(descriptor, 0)
            os.write(descriptor, f"{os.getpid()}\n".encode())
            return descriptor
        os.close(descriptor)  # of a run that ended, and removed it, in between


def _is(file: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(file.stat(follow_symlinks=False), os.fstat(descriptor))
    except FileNotFoundError:
        return False
