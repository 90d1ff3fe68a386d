"""`Trace`: the engine's actions with their times, one JSON object a line (`serve --trace FILE`).
Called by serving/engine.py and scheduler.py."""

import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

logger = logging.getLogger(__name__)


class Trace:
    """Seconds since it was opened (0: a server was started); nothing that was asked or answered. A disk that
    fails ends the trace, not the server."""

    def __init__(self, file: Path | None = None):
        self._began = time.perf_counter()
        self._out: TextIO | None = None if file is None else _opened(file)
        self.write("open", {})

    def write(self, event: str, what: Mapping[str, Any]) -> None:
        if self._out is None:
            return
        rounded = {k: round(v, 6) if isinstance(v, float) else v for k, v in what.items()}
        line = {"at": round(time.perf_counter() - self._began, 6), "event": event} | rounded
        try:
            self._out.write(json.dumps(line, separators=(",", ":")) + "\n")
        except OSError as error:
            logger.warning("--trace: %s; the trace ends here", error)
            self._out = None

    def close(self) -> None:
        if self._out is not None:
            self._out.close()
            self._out = None


def _opened(file: Path) -> TextIO:
    """Behind what is there: a server that was killed leaves half a line."""
    out = file.open("a", encoding="utf-8", buffering=1)
    if file.is_file() and out.tell():
        with file.open("rb") as held:
            held.seek(-1, 2)
            out.write("" if held.read() == b"\n" else "\n")
    return out


NO_TRACE = Trace()
