"""`read_json_object`, `parse_json_object`: the object that a file or text must hold, or a ValueError of one line.
Called by every reader of a configuration, manifest, index, run state or JSON line."""

import json
from pathlib import Path
from typing import Any

MAX_BYTES = 64 << 20
LFS = b"version https://git-lfs.github.com/spec/"  # how a file begins that only points to contents elsewhere
LFS_HINT = "a Git LFS pointer, not the file itself: fetch it with git lfs pull"


def read_json_object(file: Path, what: str | None = None, limit: int = MAX_BYTES) -> dict[str, Any]:
    """The object in a UTF-8 file, with or without a byte order mark. `what`: how messages name the file (None: by its path);
    `limit`: the most bytes it may have. ValueError where it is missing, cannot be read, is too large or holds anything else."""
    what = what or str(file)
    try:
        if (size := file.stat().st_size) > limit:
            raise ValueError(f"{what}: {size} bytes, expected at most {limit}")
        content = file.read_bytes()
    except FileNotFoundError as error:
        raise ValueError(f"{what}: missing") from error
    except OSError as error:
        raise ValueError(f"{what}: cannot be read ({error.strerror})") from error
    return parse_json_object(content, what)


def parse_json_object(content: bytes | str, what: str) -> dict[str, Any]:
    """The same of contents that are in memory."""
    if (content.encode() if isinstance(content, str) else content).startswith(LFS):
        raise ValueError(f"{what}: {LFS_HINT}")
    try:
        values = json.loads(content if isinstance(content, str) else content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{what}: not valid JSON (not UTF-8 text: byte {error.start})") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{what}: not valid JSON ({str(error).splitlines()[0]})") from error
    if not isinstance(values, dict):
        raise ValueError(f"{what}: got {type(values).__name__}, expected an object")
    return values
