"""`stored_costs`, `store_costs`: the costs of rounds that were measured on this machine, in the user's cache directory.
Called where a decoder is opened, by both runtimes, so that the next start need not measure again. `mtpd doctor` names the file.

The file can be deleted at any time. One that is damaged, or cannot be written, counts as empty.
"""

import math
import os
import platform
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from mtpd_mlx.files.atomic import write_json
from mtpd_mlx.files.json_object import read_json_object

CACHE = "MTPD_CACHE_DIR"  # environment variable: the directory, in place of mtpd's in the user's cache
NAME = "round-costs.json"
MOST, DAYS = 200, 30  # entries that are kept; after so many days they are measured again


class StoredCosts(NamedTuple):
    """costs: by kind of round, in any unit, all above 0. plan: how rounds were run, where there is more than one way."""

    costs: dict[str, float]
    plan: str | None = None


def costs_file() -> Path:
    """Where the entries are, or will be."""
    if folder := os.environ.get(CACHE):
        return Path(folder).expanduser() / NAME
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(caches).expanduser() / "mtpd" / NAME


def stored_costs(key: str) -> StoredCosts | None:
    """key: all that the costs depend on, the machine first. None: not measured, or too long ago."""
    entry = _entries().get(key)
    if not isinstance(entry, dict) or not _recent(entry):
        return None
    costs, plan = entry.get("costs"), entry.get("plan")
    if not isinstance(costs, dict) or not costs or not all(_is_cost(cost) for cost in costs.values()):
        return None
    return StoredCosts(costs, plan if isinstance(plan, str) else None)


def store_costs(key: str, measured: StoredCosts) -> None:
    """Adds or replaces an entry. The oldest ones go."""
    file, entries = costs_file(), _entries()
    entries[key] = {"costs": measured.costs, "plan": measured.plan, "time": int(time.time())}
    newest = sorted((k for k in entries if _recent(entries[k])), key=lambda k: entries[k]["time"])[-MOST:]
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, {k: entries[k] for k in newest})


def processor() -> str:
    """The CPU as its maker calls it, and the cores that this process may use."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or platform.machine()}, {cores()} cores"


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _entries() -> dict[str, Any]:
    with suppress(OSError, ValueError):
        return read_json_object(costs_file())
    return {}


def _recent(entry: Any) -> bool:
    when: Any = entry.get("time") if isinstance(entry, dict) else None
    return isinstance(when, int | float) and 0 <= time.time() - when < DAYS * 86400


def _is_cost(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and value > 0
