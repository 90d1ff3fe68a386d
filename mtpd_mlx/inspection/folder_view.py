"""`View`, `LocalView`: a folder as inspection sees it (names, small JSON files, tensor tables).
Called by inspection/describe.py; hub/remote.py has the one of the hub."""

from pathlib import Path
from typing import Any, Protocol

from mtpd_mlx.files.json_object import read_json_object
from mtpd_mlx.files.safetensors import read_header

MAX_JSON_BYTES = 8 << 20


class View(Protocol):
    """A folder as inspection sees it, on disk or on the hub. No weights are read."""

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


class LocalView:
    """The View of a folder on disk."""

    def __init__(self, folder: Path, name: str | None = None):
        """`name`: what users call it; None: by its path."""
        self.folder, self.name = folder, name or str(folder)

    def files(self) -> dict[str, int]:
        return {file.name: file.stat().st_size for file in sorted(self.folder.iterdir()) if file.is_file()}

    def json(self, name: str) -> dict[str, Any]:
        return read_json_object(self.folder / name, limit=MAX_JSON_BYTES)

    def table(self, name: str) -> dict[str, Any]:
        return read_header(self.folder / name)[0]
