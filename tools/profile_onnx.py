#!/usr/bin/env python3
"""Where the time of a plain step and of a round goes on an NVIDIA GPU: every kernel, inside the captured CUDA graph too.

    python -m tools.profile_onnx FOLDER                  # an exported folder
    python -m tools.profile_onnx FOLDER --genai PEER     # the same table of onnxruntime-genai (in a process of its own)

Needs torch, whose profiler reads CUDA's own records (CUPTI); they slow launches down a little, so times are for shares.
Run it from the repository root.
"""

import argparse
import json
import re
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from mtpd_onnx.open import open_folder
from mtpd_onnx.peer_genai import GenaiPeer

LONGEST_NAME = 72
PROMPT = 64


def kernels(work: Callable[[], None], passes: int) -> dict[str, Any]:
    """{"wall_ms", "busy_ms", "kernels": [[name, calls, microseconds]]}, all per pass of which `work` makes `passes`."""
    from torch.profiler import ProfilerActivity, profile

    work()
    started = time.perf_counter()
    work()
    wall = time.perf_counter() - started
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        work()
    spent: dict[str, list[float]] = defaultdict(lambda: [0, 0.0])
    for event in profiler.events():
        entry = spent[short(event.name)]
        entry[0] += 1
        entry[1] += event.device_time_total
    rows = [[name, calls / passes, us / passes] for name, (calls, us) in spent.items()]
    rows.sort(key=lambda row: -row[2])
    return {"wall_ms": 1e3 * wall / passes, "busy_ms": sum(row[2] for row in rows) / 1e3, "kernels": rows}


def short(name: str) -> str:
    """Without return type, arguments and most template parameters."""
    name = re.sub(r"\(anonymous namespace\)::|onnxruntime::|cuda::|contrib::|void ", "", name)
    return re.sub(r"\((?:[^()]|\([^()]*\))*\)$", "", name)[:LONGEST_NAME]


def of_backend(backend: Any, steps: int) -> dict[str, Any]:
    """A step, or a round, `steps` times after a prompt of random tokens."""
    prompt = np.random.default_rng(0).integers(2, 1000, PROMPT).tolist()

    def work() -> None:
        backend.rewind_to(0)
        backend.prefill(prompt)
        for _ in range(steps):
            backend.runner.fixed()

    return kernels(work, steps)


def of_genai(folder: Path, steps: int) -> dict[str, Any]:
    peer = GenaiPeer(folder)
    prompt = np.random.default_rng(0).integers(2, 1000, PROMPT).tolist()
    peer.warm_up()
    return kernels(lambda: void(peer.generate(prompt, steps + 1)), steps)


def void(_: Any) -> None:
    """A statement made of an expression."""


def show(title: str, result: dict[str, Any], rows: int) -> None:
    count = sum(calls for _, calls, _ in result["kernels"])
    print(f"{title}: {result['wall_ms']:.3f} ms a pass (prefill included), {result['busy_ms']:.3f} ms in {count:.0f} kernels")
    for name, calls, us in result["kernels"][:rows]:
        print(f"  {us:8.1f} us {calls:6.1f} x {us / max(calls, 1e-9):7.2f}  {name}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--genai", type=Path, metavar="DIR", help="the same model as an onnxruntime-genai folder")
    parser.add_argument("--only-genai", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, default=64)
    parser.add_argument("--rows", type=int, default=24, help="kernels that are listed (default: %(default)s)")
    parser.add_argument("--eager", action="store_true", help="without CUDA graphs")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if args.only_genai:
        print(json.dumps(of_genai(args.folder, args.steps)))
        return 0
    results = {}
    for name in ("plain", "round"):
        backend = open_folder(args.folder, provider="cuda", plain=name == "plain", captured=not args.eager)
        results[name] = of_backend(backend, args.steps)
        del backend
    if args.genai is not None:
        command = [sys.executable, "-m", "tools.profile_onnx", str(args.genai), "--only-genai", "--steps", str(args.steps)]
        results["genai"] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    if args.json:
        print(json.dumps(results))
    else:
        for name, result in results.items():
            show(name, result, args.rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
