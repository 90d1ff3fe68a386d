"""`compare_losses`: N ranks against one process with the same global batch; a resume on another number of ranks.
Called by tools/bench_scaling.py."""

import argparse
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from tools.scaling.ranks import run_worker
from tools.scaling.worker import Spec

TOLERANCE = {"float32": 1e-4, "bfloat16": 1e-3}  # largest relative difference of a loss, by the coarsest dtype in use


@dataclass(frozen=True)
class Comparison:
    """differences: largest relative difference from one process over all steps, by mode and by how the ranks went on.
    fell: the first head's loss of that process at the first and the last step, by mode."""

    steps: int
    rows: int
    compute: str
    reduce: str
    tolerance: float
    differences: dict[str, float]
    fell: dict[str, tuple[float, float]]
    resume_points: list[str]


def largest_difference(one: list[list[float]], other: list[list[float]]) -> float:
    """Of rows [step, loss, ...]. ValueError where the steps are not the same ones."""
    if [r[0] for r in one] != [r[0] for r in other]:
        raise ValueError(f"steps logged: got {[r[0] for r in other]}, expected {[r[0] for r in one]}")
    pairs = [(a, b) for x, y in zip(one, other, strict=True) for a, b in zip(x[1:], y[1:], strict=True)]
    return max(abs(a - b) / max(abs(a), 1e-6) for a, b in pairs)


def compare_losses(args: argparse.Namespace, rows: int, folder: Path) -> Comparison:
    """One process; the most ranks, interrupted halfway; then that run resumed on every number of ranks. Prints as it goes;
    ValueError where losses differ by more than the tolerance."""
    reduce = args.grad_reduce_dtype[0]
    compute, half, most = args.compute_dtype or "float32", args.steps // 2, max(args.ranks)
    tolerance = max(TOLERANCE[compute], TOLERANCE[reduce])

    def train(name: str, ranks: int, stop: int | None = None) -> dict:
        spec = Spec(
            str(folder / name), args.dims, args.vocab, args.num_heads, args.length, args.modes, {"batch": rows}, args.steps, 1,
            compute, [reduce], stop,
        )  # fmt: skip
        print(f"  {name}", file=sys.stderr, flush=True)
        found = run_worker("losses", spec, ranks, args.limit, MLX_ENABLE_TF32="0")[0]
        if stop is None:
            shutil.rmtree(spec.folder)  # gigabytes of optimiser state
        return found

    one = train("1 process", 1)
    before = train(f"{most} ranks to step {half}", most, half)
    points = [p for mode in args.modes for p in before[f"{mode} points"]]
    if points != [f"resume-{half}"] * len(args.modes):
        raise ValueError(f"resume points: got {points}, expected one at step {half} for each mode")
    differences = {}
    for ranks in sorted({1, *args.ranks}, reverse=True):
        name = f"{most} ranks, from step {half} on {ranks}"
        shutil.copytree(folder / f"{most} ranks to step {half}", folder / name)
        resumed = train(name, ranks)
        for mode in args.modes:
            differences[f"{mode}, {name}"] = largest_difference(one[mode], resumed[mode])
    fell = {mode: (one[mode][0][2], one[mode][-1][2]) for mode in args.modes}
    result = Comparison(args.steps, rows, compute, reduce, tolerance, differences, fell, points)
    if not args.json:
        print(f"{args.steps} steps of {rows} rows, {compute}, gradients summed in {reduce}; against one process:")
        for mode, (first, last) in fell.items():
            print(f"  {mode}, 1 process: loss of the first head from {first:.3f} to {last:.3f}")
        for name, value in differences.items():
            print(f"  {name}: largest relative difference of a loss {value:.1e} (tolerance {tolerance:.0e})")
    if max(differences.values()) > tolerance:
        raise ValueError(f"losses differ by up to {max(differences.values()):.1e}, tolerated are {tolerance:.0e}")
    return result
