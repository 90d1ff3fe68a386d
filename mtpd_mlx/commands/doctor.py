"""`mtpd doctor`: device, versions, BLAS, compiler and memory, and what to fix.
Called by mtpd_mlx/cli.py."""

import json
import os
import platform
import shutil
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mtpd_mlx.options.measure import DoctorOptions

OPTIONS = (DoctorOptions,)
EXAMPLES = ("mtpd doctor", "mtpd doctor --report --heads heads")

CHAT = Path(__file__).parents[1] / "assets" / "demo" / "chat"
PROMPTS, TOKENS = 2, 64  # of each set that --report times, and of each text
SIZE = 1024  # of the matrix product that is timed
SLOW = 30.0  # GFLOP/s in float32 below which a CPU's BLAS is the reference one


@dataclass
class Findings:
    """facts: what is there, in order. problems: what to fix, each with the remedy."""

    facts: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def run(output: DoctorOptions) -> int:
    """Exit status 1 where something should be fixed."""
    found = examine()
    if output.report:
        print(report(found, time_heads(output.heads, output.model) if output.heads else {}))
    elif output.json:
        print(json.dumps({**found.facts, "problems": found.problems}, indent=2))
    else:
        width = max(map(len, found.facts))
        print("\n".join(f"{name:{width}}  {value}" for name, value in found.facts.items()))
        print("\n".join(["", *(f"fix: {p}" for p in found.problems)]) if found.problems else "\nnothing to fix")
    return 1 if found.problems else 0


def report(found: Findings, timed: dict[str, Any]) -> str:
    """Markdown that a bug report or a mail can hold. No path of this machine is in it."""
    facts = {name: Path(value).name if str(value).startswith("/") else value for name, value in found.facts.items()}
    rows = [
        f"| {name} | {value} |" for name, value in (facts | {"to fix": "; ".join(found.problems) or "nothing"} | timed).items()
    ]
    return "\n".join(["| mtpd doctor --report | |", "|---|---|", *rows])


def time_heads(heads: str, model: str | None) -> dict[str, str]:
    """Plain mlx_lm, ours without and with heads: greedy, interleaved, on chat prompts that come with this package."""
    from mtpd_mlx.commands.bench import measure
    from mtpd_mlx.options.base import RunnableOptions
    from mtpd_mlx.options.decode import DecodingConfig
    from mtpd_mlx.options.measure import BenchOptions
    from mtpd_mlx.options.sampling import SamplingOptions

    files = tuple(sorted(CHAT.glob("*.jsonl")))
    bench = BenchOptions(prompts=files, limit=PROMPTS, max_tokens=TOKENS, repeats=1)
    place = RunnableOptions(checkpoint=heads, model=model)
    v = measure(place, bench, DecodingConfig(), SamplingOptions())
    load = f", load average {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    same = ", ".join(f"{name} {share:.0%}" for name, share in v["identical_to_stock"].items())
    return {
        "timed": f"{len(files)} sets of {PROMPTS} chat prompts, {TOKENS} tokens each, greedy, {v['dtype']}{load}",
        "model and heads": f"{Path(v['model']).name}, {v['num_heads']} heads",
        "mlx_lm plain": f"{v['stock_plain_tok_s']:.1f} tokens/s, {v['stock_plain_peak_memory_gb']:.2f} GB at most",
        "mtpd plain": f"{v['plain_tok_s']:.1f} tokens/s",
        "mtpd with heads": f"{v['mtpd_tok_s']:.1f} tokens/s ({v['speedup']:.2f}x), {v['mtpd_peak_memory_gb']:.2f} GB at most",
        "tau": f"{v['tau']:.3f}, distinct-4 {v['distinct4']:.2f}, plan {v['plan']}",
        "texts equal to mlx_lm's": same,
    }


def examine() -> Findings:
    from mtpd_mlx.decoding.tuning.machine import device_kind, device_name
    from mtpd_mlx.files.measured import cores, costs_file
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
    facts["measured costs"] = f"{costs_file()}{'' if costs_file().is_file() else ' (none yet)'}"
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
