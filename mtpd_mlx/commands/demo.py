"""mtpd demo."""

import importlib.util
import time
from typing import Any

from mtpd_mlx.options.demo import DemoOptions
from mtpd_mlx.text.tables import format_table

OPTIONS = (DemoOptions,)


def check_packages() -> None:
    """Says at the start, not after minutes of training, what the later steps would lack."""
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f'{", ".join(missing)} not installed; install with: pip install -e ".[mlx,onnx]"')


def run(demo: DemoOptions) -> int:
    check_packages()
    from mtpd_mlx.demo.folder import demo_folder
    from mtpd_mlx.demo.report import write_report
    from mtpd_mlx.demo.run import run_demo

    start = time.perf_counter()

    def say(text: str) -> None:
        print(f"\n[{time.perf_counter() - start:5.0f} s] {text}", flush=True)

    with demo_folder(demo.out, demo.overwrite):
        report, curves = run_demo(demo.out, say)
        report["seconds"] = time.perf_counter() - start
        write_report(report, curves, demo.out)
    print("\n" + describe(report))
    print(f"\nreport: {demo.out / 'report.html'} and {demo.out / 'report.json'}")
    return 0 if report["parity"]["tokens_equal"] else 1


def describe(report: dict[str, Any]) -> str:
    depth = max(len(a["car"]) for a in report["arms"].values())
    rows = [
        [name, f"{a['tau']:.3f}", f"{a['novel']['tau']:.3f}", f"{a['distinct4']:.3f}"]
        + [f"{c:.3f}" for c in a["car"]]
        + [""] * (depth - len(a["car"]))
        for name, a in report["arms"].items()
    ]
    table = format_table(rows, ["arm", "tau", "tau new", "distinct-4", *(f"CAR {k + 1}" for k in range(depth))])
    speed, parity = report["speed"], report["parity"]
    lines = [
        table,
        "",
        f"MLX:  plain {speed['mlx_plain']:.0f} tokens/s, with heads {speed['mlx_mtpd']:.0f} "
        f"({speed['mlx_mtpd'] / speed['mlx_plain']:.2f}x, {speed['mlx_num_draft_tokens']} draft tokens)",
        f"ONNX: plain {speed['onnx_plain']:.0f} tokens/s, with heads {speed['onnx_mtpd']:.0f} "
        f"({speed['onnx_mtpd'] / speed['onnx_plain']:.2f}x, {speed['onnx_num_draft_tokens']} draft tokens)",
        f"parity: {'all' if parity['tokens_equal'] else 'NOT all'} of {parity['tokens']} tokens equal, "
        f"largest logit difference {parity['max_logit_diff']:.1e}",
    ]
    return "\n".join(lines)
