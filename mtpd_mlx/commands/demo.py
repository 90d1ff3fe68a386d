"""`mtpd demo`: train, extend, export, decode, and a report.
Called by mtpd_mlx/cli.py and `make demo`."""

import importlib.util
import time
from typing import Any

from mtpd_mlx.options.demo import DemoOptions
from mtpd_mlx.text.tables import format_table

OPTIONS = (DemoOptions,)
EXAMPLES = ("mtpd demo --out runs/demo", "mtpd demo --out runs/demo --bundled --overwrite")


def check_packages() -> None:
    """Says at the start, not after minutes of training, what the later steps would lack."""
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f'{", ".join(missing)} not installed; install with: pip install -e ".[mlx,onnx]"')


def run(demo: DemoOptions) -> int:
    check_packages()
    from mtpd_mlx.demo.folder import demo_folder
    from mtpd_mlx.demo.models import SMOLLM2
    from mtpd_mlx.demo.report import write_report
    from mtpd_mlx.demo.run import PARTS, run_demo
    from mtpd_mlx.files.atomic import discard

    start = time.perf_counter()

    def say(text: str) -> None:
        print(f"\n[{time.perf_counter() - start:5.0f} s] {text}", flush=True)

    with demo_folder(demo.out, demo.overwrite):
        try:
            report, curves = run_demo(demo.out, say, None if demo.bundled else SMOLLM2)
        except KeyboardInterrupt:
            print(f"\ninterrupted; the same command goes on where it was (--out {demo.out})", flush=True)
            raise
        report["seconds"] = time.perf_counter() - start
        write_report(report, curves, demo.out)
        discard(demo.out / PARTS)
    print("\n" + describe(report))
    print(f"\nreport: {demo.out / 'report.html'} and {demo.out / 'report.json'}")
    return 0 if all_equal(report) else 1


def all_equal(report: dict[str, Any]) -> bool:
    """Whether both runtimes wrote the same texts with heads, with each model, and MLX the same with and without."""
    parts = [part for part in (report, report["real"]) if part is not None]
    return all(part["parity"]["tokens_equal"] and part["speed"]["same_text"]["mlx"] == 1 for part in parts)


def describe(report: dict[str, Any]) -> str:
    """What a person reads: the real model first."""
    real, blocks = report["real"], []
    if real is not None:
        sets = [
            [name, f"{s['tau']:.2f}", f"{s['novel']['tau']:.2f}", f"{s['distinct4']:.2f}"] for name, s in real["sets"].items()
        ]
        blocks = [real["model"], describe_model(real), format_table(sets, ["prompts", "tau", "tau new", "distinct-4"])]
        blocks.append("The bundled small model, in short")
    elif report["real_missing"]:
        blocks.append(f"The bundled small model alone: {report['real_missing']}")
    return "\n\n".join([*blocks, describe_model(report)])


def describe_model(report: dict[str, Any]) -> str:
    """Acceptance of its arms, speed, parity."""
    depth = max(len(a["car"]) for a in report["arms"].values())
    rows = [
        [name, f"{a['tau']:.3f}", f"{a['novel']['tau']:.3f}", f"{a['distinct4']:.3f}"]
        + [f"{c:.3f}" for c in a["car"]]
        + [""] * (depth - len(a["car"]))
        for name, a in report["arms"].items()
    ]
    table = format_table(rows, ["arm", "tau", "tau new", "distinct-4", *(f"CAR {k + 1}" for k in range(depth))])
    speed, parity = report["speed"], report["parity"]
    stock = f"stock mlx_lm {speed['mlx_stock']:.0f}, " if "mlx_stock" in speed else ""
    lines = [
        table,
        "",
        f"MLX:  {stock}plain {speed['mlx_plain']:.0f} tokens/s, with heads {speed['mlx_mtpd']:.0f} "
        f"({speed['mlx_mtpd'] / speed['mlx_plain']:.2f}x, {speed['mlx_num_draft_tokens']} draft tokens at most)",
        f"ONNX: plain {speed['onnx_plain']:.0f} tokens/s, with heads {speed['onnx_mtpd']:.0f} "
        f"({speed['onnx_mtpd'] / speed['onnx_plain']:.2f}x, {speed['onnx_num_draft_tokens']} at most, "
        f"{speed['onnx_precision']})",
        f"parity: {'all' if parity['tokens_equal'] else 'NOT all'} of {parity['tokens']} tokens equal, "
        f"largest logit difference {parity['max_logit_diff']:.1e}",
    ]
    return "\n".join(lines)
