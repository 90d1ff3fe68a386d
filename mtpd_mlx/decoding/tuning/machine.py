"""`machine_key`: the key of stored tuning results, which are valid for the same device, MLX version and dtype only.
Called by `mtpd tune`, `bench`, `probe`, `doctor` and whoever reads tuned entries."""

import os
import platform
from pathlib import Path
from typing import Any

from mtpd_mlx.model.runtime import mx, on_cpu, on_cuda


def device_kind() -> str:
    """ "cpu", "cuda" or "metal"."""
    return "cpu" if on_cpu() else "cuda" if on_cuda() else "metal"


def device_name() -> str:
    """The device that MLX computes on, as its maker calls it."""
    if on_cpu():
        return f"{_cpu_name()}, {cores()} cores"
    info: dict[str, Any] = dict(mx.device_info())
    return str(info.get("device_name") or info.get("architecture") or device_kind())


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine_key(dtype: mx.Dtype) -> str:
    """Under which `mtpd tune` stores its choice: device and the type that the model is held in."""
    return f"{device_kind()}: {device_name()}, {str(dtype).removeprefix('mlx.core.')}"


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
