"""`conditions`: where a benchmark ran (machine, load, versions), and a warning if the machine is not idle.
Called by benchmark/__main__.py, child.py, report.py and bench_serve."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tools.paths import ROOT

PACKAGES = ("mtpd-mlx", "numpy", "mlx", "mlx-lm", "onnxruntime", "onnxruntime-gpu", "onnxruntime-genai", "llama-cpp-python")
BUSY = 0.2  # cores that others use: above it figures are noise


def conditions() -> dict[str, Any]:
    found = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "machine": machine(), "system": platform.platform()}
    found |= {"python": platform.python_version(), "versions": versions(), "commit": commit()}
    return found | {"load_average": list(os.getloadavg()), "environment": threads_set()}


def machine() -> str:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    gpus = "".join(f", {gpu}" for gpu in nvidia_gpus())
    return f"{name or platform.machine()}, {cores} cores, {memory() / 1e9:.0f} GB{gpus}"


def memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def nvidia_gpus() -> list[str]:
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip().splitlines()
    except (OSError, subprocess.SubprocessError):
        return []


def versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    try:
        command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def threads_set() -> dict[str, str]:
    """Variables that say how many threads libraries may take."""
    return {name: value for name, value in sorted(os.environ.items()) if name.endswith("_NUM_THREADS")}


def busy_seconds() -> float | None:
    """Processor time that all processes have used since the machine started; None where /proc does not say."""
    stat = Path("/proc/stat")
    if not stat.is_file():
        return None
    user, nice, system, _, _, irq, softirq, *_ = map(int, stat.read_text().splitlines()[0].split()[1:])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")
