"""mtpd doctor."""

import json
import platform
import shutil
import sys
import time
from dataclasses import dataclass, field
from typing import Any

from mtpd_mlx.options.measure import JsonOptions

OPTIONS = (JsonOptions,)

SIZE = 1024  # of the matrix product that is timed
SLOW = 30.0  # GFLOP/s in float32 below which a CPU's BLAS is the reference one


@dataclass
class Findings:
    """facts: what is there, in order. problems: what to fix, each with the remedy."""

    facts: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def run(output: JsonOptions) -> int:
    """Exit status 1 where something should be fixed."""
    found = examine()
    if output.json:
        print(json.dumps({**found.facts, "problems": found.problems}, indent=2))
    else:
        width = max(map(len, found.facts))
        print("\n".join(f"{name:{width}}  {value}" for name, value in found.facts.items()))
        print("\n".join(["", *(f"fix: {p}" for p in found.problems)]) if found.problems else "\nnothing to fix")
    return 1 if found.problems else 0


def examine() -> Findings:
    from mtpd_mlx.decoding.tuning.machine import cores, device_kind, device_name
    from mtpd_mlx.model.blas import preload_blas
    from mtpd_mlx.model.runtime import memory_bytes, mx, on_cpu

    found, size = Findings(), memory_bytes()
    facts, problems = found.facts, found.problems
    facts["device"] = f"{device_name()} ({device_kind()})"
    facts["platform"] = f"{platform.platform()}, Python {platform.python_version()}, {cores()} CPU cores"
    facts |= installed()
    facts["memory"] = "unknown" if size is None else f"{size / 1e9:.1f} GB"
    if on_cpu():
        report = preload_blas()
        facts["BLAS"] = report.library or ("MLX's own" if not report.needed else "the wheel's reference BLAS")
        facts["C++ compiler"] = shutil.which("g++") or "none"
        if report.needed and report.library is None:
            problems.append("no optimised BLAS: apt install libopenblas0-pthread (Debian, Ubuntu), or set MTPD_BLAS to one")
        if sys.platform == "linux" and shutil.which("g++") is None:
            problems.append("no g++: MLX runs uncompiled on the CPU; apt install g++")
        if sys.platform == "linux" and shutil.which("nvidia-smi"):
            problems.append('an NVIDIA GPU, but MLX computes on the CPU: pip install -e ".[mlx-cuda]"')
        if sys.platform == "darwin" and platform.machine() == "x86_64":
            problems.append("Python runs translated (x86_64): install an arm64 Python to use the GPU")
    facts["computes in"] = (
        "float32, whatever weights are stored in (--dtype)" if on_cpu() else "the type of the weights (--dtype)"
    )
    for kind in (mx.float32, mx.bfloat16):
        facts[f"{str(kind).removeprefix('mlx.core.')} product"] = f"{gigaflops(mx, kind):.0f} GFLOP/s"
    if on_cpu() and gigaflops(mx, mx.float32) < SLOW:
        problems.append(f"float32 products below {SLOW:.0f} GFLOP/s: the BLAS is slow, or the machine is busy")
    return found


def installed() -> dict[str, str]:
    """Versions of what this project runs on."""
    from importlib.metadata import PackageNotFoundError, version

    versions = {}
    for name in ("mtpd-mlx", "mlx", "mlx-lm", "numpy", "onnxruntime"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def gigaflops(mx: Any, kind: Any) -> float:
    """The best of three square products."""
    a = mx.ones((SIZE, SIZE), kind)
    times = []
    for _ in range(3):
        began = time.perf_counter()
        mx.eval(a @ a)
        times.append(time.perf_counter() - began)
    return 2 * SIZE**3 / min(times) / 1e9
