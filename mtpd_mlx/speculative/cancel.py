"""`with cancellable(asked): ...` and `cancel_point()`: work that can be called off, and where.
Called by the server's scheduler and by loops that may be long."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_asked: ContextVar[Callable[[], bool] | None] = ContextVar("asked", default=None)


class Cancelled(Exception):
    """Raised by cancel_point."""


@contextmanager
def cancellable(asked: Callable[[], bool]) -> Iterator[None]:
    """`asked` is called at every cancel_point inside, in this thread; where it says True, Cancelled is raised there."""
    token = _asked.set(asked)
    try:
        yield
    finally:
        _asked.reset(token)


def cancel_point() -> None:
    """Raises Cancelled if the work around it has been called off; does nothing outside of `cancellable`."""
    asked = _asked.get()
    if asked is not None and asked():
        raise Cancelled
