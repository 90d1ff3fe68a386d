"""What data-parallel training over the GPUs of one host gives (NCCL), or over ranks that share a CPU (ring).

    python -m tools.bench_scaling --ranks 1 2 4 8 --json > scaling.json       # llama-107m, heads and joint, weak and strong
    python -m tools.bench_scaling --ranks 1 2 --check-losses                  # N ranks against one; resume on other numbers
    python -m tools.bench_scaling --ranks 1 2 --kill                          # a rank of `mtpd train` killed, then resumed
    python -m tools.bench_scaling --dims tiny --ranks 1 2                     # a CPU, half a minute

Weak scaling keeps --rows for each rank, strong scaling for all together. Efficiency is tokens/s per rank over that of the
smallest number of ranks. A step takes as long as its slowest rank; figures are medians over --steps steps. Arms run
interleaved, all ranks starting each step together: `none` leaves the gradients on their ranks, so the share of the all-reduce
is what a step takes beyond that one. Bus bandwidth is bytes / time x 2 (n - 1) / n, what nccl-tests call busbw. Ranks on a
CPU have one BLAS thread each.
"""

import argparse
import json
import math
import statistics
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mtpd_mlx.model.runtime import on_cpu
from mtpd_mlx.text.tables import format_table
from tools.experiments.settings import BASES
from tools.scaling.losses import compare_losses
from tools.scaling.lost_rank import lose_ranks
from tools.scaling.ranks import check, run_worker
from tools.scaling.worker import Spec

DTYPES = ["float32", "bfloat16"]
COLUMNS = ["mode", "scaling", "ranks", "rows/rank", "gradients", "step ms", "tokens/s", "efficiency", "all-reduce", "peak GB"]


def efficiency(tokens_per_s: float, ranks: int, base_tokens_per_s: float, base_ranks: int) -> float:
    """Tokens/s per rank, as a share of that of the base."""
    return (tokens_per_s / ranks) / (base_tokens_per_s / base_ranks)


def share(with_s: float, without_s: float) -> float:
    """What of a step's time the all-reduce adds; below 0 where it is lost in the noise."""
    return 1 - without_s / with_s


def slowest(by_rank: list[list[float]]) -> float:
    """Median over repeats of the slowest rank's seconds."""
    return statistics.median(max(times) for times in zip(*by_rank, strict=True))


def batches(rows: int, ranks: int, least: int) -> dict[str, int]:
    """Global rows by kind of scaling. On one rank both are the same batch."""
    if rows % ranks:
        raise ValueError(f"--rows {rows}: expected a multiple of every number of ranks, {ranks} among them")
    return {"weak": rows * ranks} | ({} if ranks == least == 1 else {"strong": rows})


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Figures of every number of ranks, each launched by itself."""
    records: list[dict[str, Any]] = []
    reductions: list[dict[str, Any]] = []
    device = ""
    plans = {n: batches(args.rows, n, min(args.ranks)) for n in sorted(args.ranks)}
    for n, rows in plans.items():
        spec = Spec(
            str(folder), args.dims, args.vocab, args.num_heads, args.length, args.modes, rows, args.steps, args.warmup,
            args.compute_dtype or "auto", args.grad_reduce_dtype,
        )  # fmt: skip
        ranks = run_worker("measure", spec, n, args.limit)
        device = ranks[0]["device"]
        for mode in args.modes:
            records += step_figures(mode, n, rows, args.length, [r[mode]["steps"] for r in ranks])
            reductions += reduction_figures(mode, n, [r[mode]["all_reduce"] for r in ranks])
    add_efficiencies(records)
    names = ("dims", "vocab", "num_heads", "length", "rows", "steps", "warmup")
    conditions = {"device": device, **{name: getattr(args, name) for name in names}}
    return {"conditions": conditions, "steps": records, "all_reduce": reductions}


def step_figures(mode: str, n: int, rows: dict[str, int], length: int, by_rank: list[dict]) -> list[dict[str, Any]]:
    """One record for each kind of scaling and way to reduce."""
    records = []
    for scaling, count in rows.items():
        seconds = {arm: slowest([r[arm][scaling]["seconds"] for r in by_rank]) for arm in by_rank[0]}
        for arm, took in seconds.items():
            record = {
                "mode": mode,
                "scaling": scaling,
                "ranks": n,
                "rows_per_rank": count // n,
                "gradients": arm,
                "step_s": took,
                "tokens_per_s": count * length / took,
                "peak_gb_by_rank": [r[arm][scaling]["peak"] / 1e9 for r in by_rank],
            }
            records.append(record | ({} if arm == "none" else {"all_reduce_share": share(took, seconds["none"])}))
    return records


def reduction_figures(mode: str, n: int, by_rank: list[dict]) -> list[dict[str, Any]]:
    figures = []
    for way, first in by_rank[0].items():
        took = slowest([r[way]["seconds"] for r in by_rank])
        speed = first["bytes"] / took / 1e9
        figures.append(
            {"mode": mode, "ranks": n, "way": way, "bytes": first["bytes"], "seconds": took, "gb_per_s": speed}
            | {"bus_gb_per_s": speed * 2 * (n - 1) / n}
        )
    return figures


def add_efficiencies(records: list[dict[str, Any]]) -> None:
    """Against the smallest number of ranks of the same mode and scaling (of one rank: its only batch)."""
    least = min(r["ranks"] for r in records)
    for record in records:
        if record["ranks"] > 1 and record["gradients"] == "none":
            continue  # that trains nothing
        kinds = {record["scaling"], "weak"} if least == 1 else {record["scaling"]}
        arm = "none" if least == 1 else record["gradients"]
        base = next(
            r for r in records
            if (r["ranks"], r["mode"], r["gradients"]) == (least, record["mode"], arm) and r["scaling"] in kinds
        )  # fmt: skip
        record["efficiency"] = efficiency(record["tokens_per_s"], record["ranks"], base["tokens_per_s"], least)


def percent(record: dict[str, Any], name: str) -> str:
    return f"{100 * record[name]:.1f}%" if name in record else "-"


def show(result: dict[str, Any]) -> None:
    print(", ".join(f"{k} {v}" for k, v in result["conditions"].items()))
    rows = [
        [
            r["mode"], r["scaling"], str(r["ranks"]), str(r["rows_per_rank"]), r["gradients"], f"{1e3 * r['step_s']:.1f}",
            f"{r['tokens_per_s']:.0f}", percent(r, "efficiency"), percent(r, "all_reduce_share"),
            f"{max(r['peak_gb_by_rank']):.2f}",
        ]
        for r in result["steps"]
    ]  # fmt: skip
    print(format_table(rows, COLUMNS))
    if result["all_reduce"]:
        rows = [
            [
                r["mode"], str(r["ranks"]), r["way"], f"{r['bytes'] / 1e6:.1f}", f"{1e3 * r['seconds']:.2f}",
                f"{r['gb_per_s']:.2f}", f"{r['bus_gb_per_s']:.2f}",
            ]
            for r in result["all_reduce"]
        ]  # fmt: skip
        print("\nThe all-reduce of the gradients by itself")
        print(format_table(rows, ["mode", "ranks", "gradients", "MB", "ms", "GB/s", "bus GB/s"]))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2], help="numbers of ranks (default: 1 2)")
    parser.add_argument("--dims", choices=sorted(BASES), default="llama-107m", help="of the random base (default: llama-107m)")
    parser.add_argument("--modes", nargs="+", choices=["heads", "joint"], default=["heads", "joint"])
    parser.add_argument("--rows", type=int, help="rows of a rank (weak) and of all (strong); default: 32, on a CPU 8")
    parser.add_argument("--length", type=int, help="tokens per row (default: 512, on a CPU 32)")
    parser.add_argument("--vocab", type=int, help="vocabulary (default: 8192, on a CPU 256)")
    parser.add_argument("--num-heads", type=int, default=4)
    parser.add_argument("--steps", type=int, default=10, help="measured steps; with --check-losses, compared ones")
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--compute-dtype", choices=DTYPES, help="default: as mtpd train; --check-losses: float32")
    parser.add_argument(
        "--grad-reduce-dtype",
        nargs="+",
        choices=DTYPES,
        default=DTYPES,
        help="ways to time (default: both); --check-losses: the first",
    )
    parser.add_argument("--check-losses", action="store_true", help="compare losses instead of timing")
    parser.add_argument("--kill", action="store_true", help="kill a rank of mtpd train instead of timing")
    parser.add_argument("--limit", type=float, default=300, help="seconds for one launch")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()
    if args.rows is not None and (args.check_losses or args.kill):
        parser.error("--rows: of timings; --check-losses and --kill choose their own")
    rows, length, vocab = (8, 32, 256) if on_cpu() else (32, 512, 8192)
    args.rows, args.length, args.vocab = args.rows or rows, args.length or length, args.vocab or vocab
    return args


def main() -> None:
    args = parse()
    try:
        check(args.ranks)
        with tempfile.TemporaryDirectory() as name:
            if not (args.check_losses or args.kill):
                result = measure(args, Path(name))
                print(json.dumps(result, indent=2)) if args.json else show(result)
                return
            results: dict[str, Any] = {}
            if args.check_losses:
                results["losses"] = asdict(compare_losses(args, math.lcm(*args.ranks) * 2, Path(name)))
            if args.kill:
                kills = lose_ranks(args.dims, sorted(args.ranks), Path(name), args.limit, args.json)
                results["kills"] = [asdict(kill) for kill in kills]
    except (ValueError, RuntimeError) as error:
        sys.exit(f"bench_scaling: {error}")
    if args.json:
        print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
