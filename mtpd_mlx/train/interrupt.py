"""`deferred`: Ctrl-C, SIGTERM and SIGHUP put off to the end of the step, so that the saved state is consistent.
Called by train/loop.py and `mtpd extend`."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from mtpd_mlx.options import signals, streams


class Interrupted(signals.Terminated):
    """Ctrl-C or another signal, and whether --resume can go on from where the run was."""

    def __init__(self, resumable: bool, number: int = signal.SIGINT):
        super().__init__(number)
        self.resumable = resumable


@contextmanager
def deferred(active: bool) -> Iterator[Callable[[], None]]:
    """While it is open the first signal is only noted, and the function it gives raises it; the second raises at once.

    Not where `active` is False, outside the main thread, and for signals that have another handler than Python's or ours."""
    noted: list[int] = []

    def check() -> None:
        if noted:
            raise signals.as_exception(noted[0])

    def note(number: int, frame: FrameType | None) -> None:
        signals.leave_terminal()
        noted.append(number)
        if len(noted) > 1:
            raise signals.as_exception(number)
        streams.say("\nstopping after this step (Ctrl-C again: at once)")

    known = {signal.SIGINT: signal.default_int_handler} | dict.fromkeys(signals.SIGNALS, signals.raise_it)
    ours = active and signals.is_main_thread()
    with signals.handling(note, [n for n, handler in known.items() if ours and signal.getsignal(n) is handler]):
        yield check
