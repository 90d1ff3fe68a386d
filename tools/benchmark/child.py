"""One arm in a process of its own: `python -m tools.benchmark.child ENGINE KEYWORDS COMMON`, the last two as JSON.

To every answer it adds the peak of its memory [bytes] and how many cores others used meanwhile.
"""

import json
import os
import resource
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

from mtpd_onnx.peer.process import Request, answer

from tools.benchmark.arms import Common
from tools.benchmark.conditions import busy_seconds

MODULES = ("tools.benchmark.engines", "tools.benchmark.peers")


def open_arm(engine: str, keywords: dict[str, Any], common: Common) -> tuple[dict[str, Any], Request]:
    open_ = next(found for module in MODULES if (found := getattr(import_module(module), engine, None)))
    began = time.perf_counter()
    about, decode = open_(common=common, **keywords)
    about["load_seconds"] = time.perf_counter() - began
    process = about.pop("pid", None)

    def measured(prompt: list[int], max_tokens: int) -> dict[str, Any]:
        forget_peak(process)
        busy, own, wall = busy_seconds(), own_seconds(process), time.perf_counter()
        result = decode(prompt, max_tokens)
        seconds = time.perf_counter() - wall
        others = None if busy is None else max(0.0, (busy_seconds() - busy) - (own_seconds(process) - own)) / seconds
        return result | {"memory": peak_memory(process), "others_cores": others}

    return about, measured


def own_seconds(pid: int | None) -> float:
    """Processor time of this process, and of `pid`, which does its work elsewhere."""
    return time.process_time() + (0.0 if pid is None else process_seconds(pid))


def process_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def forget_peak(pid: int | None) -> None:
    """Linux starts the peak anew; elsewhere it is that of the process's whole life."""
    try:
        Path(f"/proc/{pid or 'self'}/clear_refs").write_text("5")
    except OSError:
        return


def peak_memory(pid: int | None) -> int:
    """Resident bytes at most, mapped weights that were read included."""
    status = Path(f"/proc/{pid or 'self'}/status")
    if status.is_file():
        return next(1024 * int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    answer(lambda: open_arm(sys.argv[1], json.loads(sys.argv[2]), Common(**json.loads(sys.argv[3]))))
