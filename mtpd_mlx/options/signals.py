"""`stoppable`: SIGTERM and SIGHUP as Ctrl-C. `status_of`: the exit status of each.
Called by options/command_line.py around every command, and by train/interrupt.py.

options/command_line.py opens it around every command, so that whatever cleans up after Ctrl-C does after these, too. A second
signal is raised wherever the first one is being handled, as a second Ctrl-C is.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

Handler = Callable[[int, FrameType | None], Any]
SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))  # Windows has one of them


class Terminated(KeyboardInterrupt):
    """A signal that ends the program; handled wherever Ctrl-C is."""

    def __init__(self, number: int):
        super().__init__()
        self.number = number


def number_of(stop: KeyboardInterrupt) -> int:
    """The signal behind it."""
    return stop.number if isinstance(stop, Terminated) else signal.SIGINT


def status_of(stop: KeyboardInterrupt) -> int:
    """The exit status, as a shell reports a process that the signal ended: 130, 143, 129."""
    return 128 + number_of(stop)


def as_exception(number: int) -> KeyboardInterrupt:
    return KeyboardInterrupt() if number == signal.SIGINT else Terminated(number)


@contextmanager
def stoppable() -> Iterator[None]:
    """While it is open, SIGTERM and SIGHUP raise Terminated in the main thread. Not those that have a handler, or are ignored
    (nohup), and not outside the main thread."""
    with handling(raise_it, [s for s in SIGNALS if is_main_thread() and signal.getsignal(s) is signal.SIG_DFL]):
        yield


@contextmanager
def handling(handler: Handler, numbers: list[int]) -> Iterator[None]:
    """`handler` in place of what these signals have."""
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def raise_it(number: int, frame: FrameType | None) -> None:
    leave_terminal()
    raise as_exception(number)


def is_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def leave_terminal() -> None:
    """Points standard streams at nothing where their terminal is gone: what is still to be said must not fail."""
    for descriptor in (0, 1, 2):
        try:
            os.write(descriptor, b"") if descriptor else os.fstat(descriptor)
        except OSError:
            with suppress(OSError):
                redirect(descriptor)


def redirect(descriptor: int) -> None:
    """Points a descriptor at the null device."""
    null = os.open(os.devnull, os.O_RDWR)
    if null != descriptor:
        os.dup2(null, descriptor)
        os.close(null)
