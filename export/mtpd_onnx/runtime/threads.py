"""`set_threads`: the number of threads that onnxruntime takes on CPUs, and whether they spin while they wait.
Called by runtime/sessions.py."""

import os
from pathlib import Path
from typing import Any

QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of a container: "quota period" in microseconds, or "max period"


def allowed_cpus(quota: Path | None = None) -> int:
    """The number of CPUs that this process may use: by its affinity and its container's quota, rounded up."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        limit, period = (quota or QUOTA).read_text().split()
        return max(1, min(count, -(-int(limit) // int(period))))
    except (OSError, ValueError):  # no container, or one without a limit
        return count


def choose_threads(wanted: int | None) -> int | None:
    """`wanted`, else the CPUs that are allowed where these are fewer than the machine has. None: onnxruntime's own choice, a
    thread for every physical core of the machine, which knows of no limits."""
    if wanted is not None:
        return wanted
    allowed = allowed_cpus()
    return allowed if allowed < (os.cpu_count() or 1) else None


def is_busy() -> bool:
    """Whether others keep every allowed CPU busy: more tasks than CPUs wanted to run, on average of the last minute."""
    return hasattr(os, "getloadavg") and os.getloadavg()[0] > allowed_cpus()


def set_threads(options: Any, wanted: int | None) -> None:
    """Sets threads and waiting of SessionOptions.

    Threads that wait for the next operator spin, which is quickest on an idle machine. On a busy one the scheduler takes the
    CPU away from whoever spins, in the middle of an operator: there they sleep. After a run no thread spins, so that two
    sessions of one process do not take the CPUs from each other.
    """
    if (threads := choose_threads(wanted)) is not None:
        options.intra_op_num_threads = threads
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if is_busy():
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
