"""Ctrl-C while training: taken between two steps, so that what is saved is a state the run has been in."""

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, and whether --resume can go on from where the run was."""

    def __init__(self, resumable: bool):
        super().__init__()
        self.resumable = resumable


@contextmanager
def deferred(active: bool) -> Iterator[Callable[[], None]]:
    """While it is open the first Ctrl-C is only noted, and the function it gives raises it; the second raises at once.

    Not where `active` is False, outside the main thread, or where Ctrl-C has another handler than Python's own."""
    noted = False

    def check() -> None:
        if noted:
            raise KeyboardInterrupt

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal noted
        if noted:
            raise KeyboardInterrupt
        noted = True
        print("\nstopping after this step (Ctrl-C again: at once)", file=sys.stderr, flush=True)

    ours = threading.current_thread() is threading.main_thread()
    if not active or not ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield check
        return
    signal.signal(signal.SIGINT, note)
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
