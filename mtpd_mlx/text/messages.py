"""`messages_on_stderr`: log records as lines on standard error.
Called by mtpd_mlx/cli.py and mtpd_onnx/cli.py around their commands.

Library code logs with `logging.getLogger(__name__)` and configures nothing. From Python its messages are seen by who configures
logging.
"""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

PREFIXES = {"mtpd_mlx": "mtpd", "mtpd_onnx": "mtpd-onnx"}  # by package
LEVEL = "MTPD_LOG"  # environment variable: the least level that is shown
LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")


class _Line(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return f"{PREFIXES[record.name.partition('.')[0]]}: {record.getMessage()}"


class _BesideBars(logging.StreamHandler[TextIO]):
    """Writes lines above progress bars, where some are drawn."""

    def emit(self, record: logging.LogRecord) -> None:
        if "tqdm" not in sys.modules:
            return super().emit(record)
        with sys.modules["tqdm"].tqdm.external_write_mode():
            super().emit(record)


@contextmanager
def messages_on_stderr() -> Iterator[None]:
    """While it is open, records of INFO and above (or of the level in MTPD_LOG) are shown. ValueError for another level."""
    level = os.environ.get(LEVEL) or "INFO"
    if level not in LEVELS:
        raise ValueError(f"{LEVEL}: got {level!r}, expected one of {', '.join(LEVELS)}")
    handler = _BesideBars()
    handler.setFormatter(_Line())
    loggers = [logging.getLogger(package) for package in PREFIXES]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(level)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
            logger.setLevel(logging.NOTSET)


def dot() -> None:
    """A sign of life on standard error, after each piece of a measurement; the line is the caller's to end."""
    print(".", end="", file=sys.stderr, flush=True)
