"""`Clock`: the time box of a call. Work stops in a state from which the next call goes on.
Called by run.py, equal_time.py, own_text.py and train_arm.py."""

import time
from dataclasses import dataclass, field


class OutOfTime(KeyboardInterrupt):
    """Raised where work can stop; the training loop writes a resume point for a KeyboardInterrupt."""


@dataclass
class Clock:
    """`seconds` of work from now on (None: no limit)."""

    seconds: float | None
    started: float = field(default_factory=time.perf_counter)

    @property
    def spent(self) -> float:
        return time.perf_counter() - self.started

    def check(self) -> None:
        if self.seconds is not None and self.spent > self.seconds:
            raise OutOfTime
