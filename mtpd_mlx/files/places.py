"""`check_place`: whether a file can be written, asked before the work whose result it will hold.
Called by options/measure.py and options/text.py."""

import tempfile
from pathlib import Path


def check_place(option: str, file: Path) -> None:
    """ValueError in one line, naming the option, where `file` could not be written or replaced: tried beside it, since neither
    permissions nor the owner say all (read-only file systems, full ones)."""
    if not file.parent.is_dir():
        raise ValueError(f"{option} {file}: expected a file in a folder that is there")
    if file.exists() and not file.is_file():
        raise ValueError(
            f"{option} {file}: cannot write it, expected a file (got {'a folder' if file.is_dir() else 'a device'})"
        )
    try:
        with tempfile.TemporaryFile(dir=file.parent):
            pass
    except OSError as error:
        raise ValueError(f"{option} {file}: cannot write there ({error.strerror})") from error
