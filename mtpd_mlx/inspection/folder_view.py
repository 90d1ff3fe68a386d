"""A folder as inspection sees it: names, small JSON files, tensor tables. On disk here; on the hub in hub/remote.py."""

import json
from pathlib import Path
from typing import Any, Protocol

from mtpd_mlx.files.safetensors import read_header

MAX_JSON_BYTES = 8 << 20


class View(Protocol):
    @property
    def name(self) -> str: ...

    def files(self) -> dict[str, int]:
        """name -> bytes of every file."""
        ...

    def json(self, name: str) -> dict[str, Any]:
        """A small file's object; ValueError in one line."""
        ...

    def table(self, name: str) -> dict[str, Any]:
        """The tensor table of a safetensors file."""
        ...


def parse_object(text: bytes, name: str) -> dict[str, Any]:
    """ValueError in one line unless `text` is a JSON object."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name}: not valid JSON ({str(error).splitlines()[0]})") from error
    if not isinstance(values, dict):
        raise ValueError(f"{name}: got {type(values).__name__}, expected an object")
    return values


class LocalView:
    def __init__(self, folder: Path, name: str | None = None):
        """`name`: what users call it; None: by its path."""
        self.folder, self.name = folder, name or str(folder)

    def files(self) -> dict[str, int]:
        return {file.name: file.stat().st_size for file in sorted(self.folder.iterdir()) if file.is_file()}

    def json(self, name: str) -> dict[str, Any]:
        file = self.folder / name
        if not file.is_file() or file.stat().st_size > MAX_JSON_BYTES:
            raise ValueError(f"{file}: missing, or larger than {MAX_JSON_BYTES} bytes")
        return parse_object(file.read_bytes(), str(file))

    def table(self, name: str) -> dict[str, Any]:
        return read_header(self.folder / name)[0]
