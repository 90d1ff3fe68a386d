"""`one_line`, `say_once`: onnxruntime's errors (which share no base but Exception) in one line; messages logged once.
Called by mtpd_onnx/cli.py, runtime/ and peer/."""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

PREFIX = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ")
OUT_OF_MEMORY = re.compile(r"out of memory|allocate memory|bad_alloc", re.IGNORECASE)
logger = logging.getLogger(__name__)


@cache
def say_once(text: str) -> None:
    """Logs the same text once in a process, however many sessions are opened."""
    logger.info(text)


def first_line(error: BaseException) -> str:
    """What happened, without onnxruntime's own prefix."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return PREFIX.sub("", line)


@contextmanager
def one_line(what: str) -> Iterator[None]:
    """Raises as ValueError whatever onnxruntime raises inside: "what: its first line"."""
    try:
        yield
    except Exception as error:
        hint = "; export with a smaller --capacity or --precision" if OUT_OF_MEMORY.search(str(error)) else ""
        raise ValueError(f"{what}: {first_line(error)}{hint}") from error
