"""`Parts`: finished parts of an interrupted demo, so that the next run goes on there.
Called by demo/run.py."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mtpd_mlx.files.atomic import discard, write_json
from mtpd_mlx.files.json_object import read_json_object


class Parts:
    """Results by name in `folder`, one JSON file each, written whole once the part is finished."""

    def __init__(self, folder: Path):
        self.folder = folder

    def of(self, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The stored result of the part `name`; else `make()`'s, which is stored. A damaged file counts as none."""
        file = self.folder / f"{name}.json"
        if file.is_file():
            try:
                return read_json_object(file)
            except ValueError:
                pass
        result = make()
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(file, result)
        return read_json_object(file)  # as a later run will see it

    def forget(self) -> None:
        """For when the report holds it all."""
        discard(self.folder)
