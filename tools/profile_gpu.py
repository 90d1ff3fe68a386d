#!/usr/bin/env python3
"""Where the time of a plain step, of a round or of a training step goes on an NVIDIA GPU: every kernel, those of captured CUDA
graphs too.

    python -m tools.profile_gpu onnx FOLDER                  # an exported folder
    python -m tools.profile_gpu genai PEER                   # onnxruntime-genai, in a process of its own
    python -m tools.profile_gpu mlx CHECKPOINT --plan fixed+compiled        # and what the host does meanwhile
    python -m tools.profile_gpu train llama-30m --steps 8            # dims of tools/experiments, random weights

Needs torch, whose profiler reads CUDA's own records (CUPTI); they slow launches down a little, so kernel times are for shares.
`mlx` and `train` with --no-kernels need neither torch nor a GPU. Run it from the repository root.
"""

import argparse
import json
import re
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

LONGEST_NAME = 72
VOCABULARY = 8192  # of `train`
PROMPT = np.random.default_rng(0).integers(2, 250, 64).tolist()
Result = dict[str, Any]
"""per pass: wall_ms, the prompt included; with kernels busy_ms and kernels [[name, calls, microseconds]]; host_ms: by what the
host did."""


def measured(work: Callable[[], None], passes: int, with_kernels: bool) -> Result:
    """`work` makes `passes` passes and returns when the device is done."""
    work()
    started = time.perf_counter()
    work()
    result: Result = {"wall_ms": 1e3 * (time.perf_counter() - started) / passes}
    return result | (kernels(work, passes) if with_kernels else {})


def kernels(work: Callable[[], None], passes: int) -> Result:
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        work()
    spent: dict[str, list[float]] = defaultdict(lambda: [0, 0.0])
    for event in profiler.events():
        entry = spent[short(event.name)]
        entry[0] += 1
        entry[1] += event.device_time_total
    rows = [[name, calls / passes, us / passes] for name, (calls, us) in spent.items() if us > 0]
    rows.sort(key=lambda row: -row[2])
    return {"busy_ms": sum(row[2] for row in rows) / 1e3, "kernels": rows}


def short(name: str) -> str:
    """Without return type, arguments and most template parameters."""
    name = re.sub(r"\(anonymous namespace\)::|onnxruntime::|cuda::|contrib::|void ", "", name)
    return re.sub(r"\((?:[^()]|\([^()]*\))*\)$", "", name)[:LONGEST_NAME]


def of_onnx(args: argparse.Namespace) -> dict[str, Result]:
    from mtpd_onnx.runtime.open import open_folder

    plain: Any = open_folder(args.path, provider="cuda", plain=True, captured=not args.eager)
    backend: Any = open_folder(args.path, provider="cuda", choose=True, captured=not args.eager)
    runs = getattr(backend, "_runs", None)
    if runs is None:  # a folder whose rounds have one number of drafts
        runners = {"round": (backend, backend.runner)}
    else:
        runners = {"step": (backend, runs.plain)} | {f"lookup {n}": (backend, r) for n, r in runs.lookups.items()}
        runners |= {f"heads {n}": (backend, r) for (n, window), r in runs.heads.items() if window == runs.windows[0]}
    results = {}
    for name, (of, runner) in ({"plain": (plain, plain.runner)} | runners).items():

        def work(of: Any = of, runner: Any = runner) -> None:
            of.rewind_to(0)
            of.prefill(PROMPT)
            for _ in range(args.steps):
                runner.fixed()

        results[name] = measured(work, args.steps, args.kernels)
    return results


def of_genai(args: argparse.Namespace) -> dict[str, Result]:
    from mtpd_onnx.peer.genai import GenaiPeer

    peer = GenaiPeer(args.path)
    peer.warm_up()

    def work() -> None:
        peer.generate(PROMPT, args.steps + 1)

    return {"genai": measured(work, args.steps, args.kernels)}


def of_mlx(args: argparse.Namespace) -> dict[str, Result]:
    from mtpd_mlx.decoding.open import open_decoder
    from mtpd_mlx.model.load_save import load_checkpoint
    from mtpd_mlx.options.decode import DecodingConfig
    from mtpd_mlx.speculative.sampling import Sampling

    base, heads, _ = load_checkpoint(args.path)
    heads.set_dtype(base.dtype)
    sampling = Sampling(temp=args.temp, seed=0)
    results = {}
    for name, drafts in (("plain", 0), ("round", heads.num_heads)):
        plan = args.plan if drafts else "growing"
        decoder = open_decoder(base, heads, DecodingConfig(plan=plan), num_draft_tokens=drafts, sampling=sampling)
        results[name] = mlx_passes(decoder, args)
    return results


def of_train(args: argparse.Namespace) -> dict[str, Result]:
    """host_ms: call (of the compiled step), evaluate (until the device is done: busy less, it waits for the host)."""
    from mtpd_mlx.model.runtime import bound_queue, mx
    from mtpd_mlx.options.train import LossConfig, OptimConfig
    from mtpd_mlx.train.step import Stepper
    from tools.bench_train import text
    from tools.experiments.settings import BASES, setting
    from tools.scaling.worker import Spec, make_model

    bound_queue()
    name, results = str(args.path), {}
    if name not in BASES:
        raise SystemExit(f"profile_gpu: error: train: got {name}, expected one of {', '.join(BASES)}")
    s = setting(name, [])
    for mode in ("heads", "joint"):
        spec = Spec("", name, VOCABULARY, 4, s.length, [mode], {}, args.steps)
        stepper = Stepper(make_model(spec, mode), LossConfig(), OptimConfig(iters=1000, warmup=0))
        batch, spent = text(VOCABULARY, s.batch_size, s.length, 0), defaultdict(float)
        whole, evaluate = timed(spent, "call", stepper._whole), mx.eval
        stepper._whole = whole

        def work(stepper: Any = stepper, batch: Any = batch, spent: Any = spent) -> None:
            spent.clear()
            for _ in range(args.steps):
                stepper.step([batch])

        try:
            mx.eval = timed(spent, "evaluate", evaluate)
            result = with_host(measured(work, args.steps, False), spent, args.steps)
        finally:
            mx.eval = evaluate
        results[mode] = result | (kernels(work, args.steps) if args.kernels else {})
        del stepper, work
        mx.clear_cache()
    return results


def timed(spent: dict[str, float], name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    """`call`, its seconds added to spent[name]."""

    def run(*values: Any) -> Any:
        began = time.perf_counter()
        try:
            return call(*values)
        finally:
            spent[name] += time.perf_counter() - began

    return run


def with_host(result: Result, spent: dict[str, float], passes: int) -> Result:
    host = {name: 1e3 * seconds / passes for name, seconds in spent.items()}
    return result | {"host_ms": host | {"other": result["wall_ms"] - sum(host.values())}}


def mlx_passes(decoder: Any, args: argparse.Namespace) -> Result:
    """host_ms: build (calls of the round's graph, compiled or not), enqueue (async_eval), wait (reading results), other."""
    from mtpd_mlx.decoding import fixed_rounds, growing_rounds, text_state
    from mtpd_mlx.model.runtime import mx

    spent: dict[str, float] = defaultdict(float)

    def work() -> None:
        decoder.rewind_to(0)
        token = decoder.prefill(PROMPT)
        spent.clear()
        for _ in range(args.steps):
            token = decoder.round(token).emitted[-1] if decoder.num_draft_tokens else decoder.step(token)
        mx.synchronize()

    readers: tuple[Any, ...] = (fixed_rounds, growing_rounds, text_state)
    enqueue, read = mx.async_eval, text_state.read_tokens
    if hasattr(decoder, "_graph"):
        decoder._graph = timed(spent, "build", decoder._graph)
    try:
        mx.async_eval = timed(spent, "enqueue", enqueue)
        for module in readers:
            module.read_tokens = timed(spent, "wait", read)
        result = with_host(measured(work, args.steps, False), spent, args.steps)
    finally:
        mx.async_eval = enqueue
        for module in readers:
            module.read_tokens = read
    return result | (kernels(work, args.steps) if args.kernels else {})


def show(title: str, result: Result, rows: int) -> None:
    said = f"{title}: {result['wall_ms']:.3f} ms a pass"
    if "host_ms" in result:
        said += "; host: " + ", ".join(f"{name} {ms:.3f}" for name, ms in result["host_ms"].items())
    if "kernels" in result:
        count = sum(calls for _, calls, _ in result["kernels"])
        said += f"; {result['busy_ms']:.3f} ms in {count:.0f} kernels"
    print(said)
    for name, calls, us in result.get("kernels", [])[:rows]:
        print(f"  {us:8.1f} us {calls:6.1f} x {us / max(calls, 1e-9):7.2f}  {name}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runtime", choices=("onnx", "genai", "mlx", "train"))
    parser.add_argument("path", type=Path, help="exported folder, genai folder, heads checkpoint, or dims")
    parser.add_argument("--steps", type=int, default=64, help="passes per measurement (default: %(default)s)")
    parser.add_argument("--rows", type=int, default=24, help="kernels that are listed (default: %(default)s)")
    parser.add_argument("--kernels", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--eager", action="store_true", help="onnx: without CUDA graphs")
    parser.add_argument("--plan", default="fixed+compiled", help="mlx: how rounds run (default: %(default)s)")
    parser.add_argument("--temp", type=float, default=0.0, help="mlx: sample")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    results = {"onnx": of_onnx, "genai": of_genai, "mlx": of_mlx, "train": of_train}[args.runtime](args)
    if args.json:
        print(json.dumps(results))
    else:
        for name, result in results.items():
            show(name, result, args.rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
