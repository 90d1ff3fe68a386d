"""`prepare`, `flush`: standard input and output in UTF-8 whatever the program was started with, faults in one line.
Called by options/command_line.py: `prepare` before anything is opened, `flush` before the exit status."""

import io
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from mtpd_mlx.options.signals import redirect

ENCODING = "utf-8"  # of what is read and written, whatever the locale or PYTHONIOENCODING says: JSON has no other


def prepare() -> None:
    """Descriptors 0 to 2 that are closed lead nowhere (the next file opened would take their place); sys.stdin stays None then.
    Texts are UTF-8; what is no character is written with a backslash, as JSON would."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            redirect(descriptor)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding=ENCODING))  # noqa: SIM115 (for the whole run)
    for stream, errors in ((sys.stdin, "strict"), (sys.stdout, "backslashreplace"), (sys.stderr, "backslashreplace")):
        if isinstance(stream, io.TextIOWrapper):
            with suppress(io.UnsupportedOperation):  # something was read from it
                stream.reconfigure(encoding=ENCODING, errors=errors)


def flush() -> None:
    """Writes out what was printed. OSError (BrokenPipeError among them) where that cannot be; it is dropped then."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        drop_output()
        raise OSError(error.errno, f"standard output: {error.strerror}") from error


def drop_output(out: TextIO | None = None) -> None:
    """Standard output (or `out`) leads nowhere from here on: the interpreter flushes it once more on its way out."""
    with suppress(OSError, ValueError, AttributeError):  # not a real file: nothing is flushed later
        redirect((out or sys.stdout).fileno())


def say(line: str) -> None:
    """A line on standard error, where there is one that takes it."""
    try:
        print(line, file=sys.stderr, flush=True)
    except (OSError, ValueError):
        drop_output(sys.stderr)


def read_line(prompt: str) -> str:
    """input(), to which a standard input that is closed has come to its end. EOFError there."""
    if sys.stdin is None:
        raise EOFError
    return input(prompt)


def takes_colour(out: TextIO) -> bool:
    """Whether `out` is a terminal that shows colours (or FORCE_COLOR says so), and NO_COLOR, not empty, asks for none
    (no-color.org, force-color.org)."""
    shown = os.environ.get("FORCE_COLOR") or (out.isatty() and os.environ.get("TERM") != "dumb")
    return bool(shown) and not os.environ.get("NO_COLOR")
