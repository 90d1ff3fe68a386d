"""Files that are replaced whole: written and synced under a temporary name, then renamed."""

import json
import os
from pathlib import Path
from typing import Any


def write_json(file: Path, values: Any) -> None:
    """Replaces a file whole with JSON."""
    write_text(file, json.dumps(values, indent=2) + "\n")


def write_text(file: Path, text: str) -> None:
    """Writes under a temporary name, then renames: the final name never holds half a file."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    temporary.write_text(text)
    sync(temporary)
    temporary.replace(file)


def sync(path: Path) -> None:
    """Makes a file's contents, or the renames in a folder, last through a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
