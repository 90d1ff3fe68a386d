#!/usr/bin/env python3
"""Everything a user does, once, on a random checkpoint of real dimensions, with the time and the peak memory of each step.

    python -m tools.real_size OUT [--dims qwen3-0.6b] [--iters 20]

Makes the base (tools/random_model.py), inspects it, trains heads, exports, decodes on both runtimes. Weights are random, so
that acceptance means nothing. Run it from the repository root.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from tools.paths import ROOT, python_path


def measured(title: str, command: list[str]) -> float:
    """Runs `command`; prints its last line, seconds and peak memory; returns the peak in GB. Exits where it fails."""
    started = time.perf_counter()
    child = subprocess.Popen(
        command, cwd=ROOT, env=os.environ | python_path(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert child.stdout is not None
    lines = [line.rstrip() for line in child.stdout.read().replace("\r", "\n").splitlines() if line.strip()]
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    peak = usage.ru_maxrss / (1e6 if sys.platform == "linux" else 1e9)
    print(f"{title}: {time.perf_counter() - started:.0f} s, {peak:.2f} GB; {lines[-1] if lines else ''}", flush=True)
    if child.returncode not in (0, 3):  # 3: no step was better than the start, which random weights allow
        print("\n".join(lines[-5:]))
        sys.exit(1)
    return peak


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--dims", default="qwen3-0.6b", help="of tools/random_model.py (default: %(default)s)")
    parser.add_argument("--iters", type=int, default=20, help="training steps (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=128, help="tokens of a step (default: %(default)s)")
    parser.add_argument("--num-heads", type=int, default=4)
    args = parser.parse_args()
    base, heads, data = args.out / "model" / "base", args.out / "heads", args.out / "data"
    data.mkdir(parents=True, exist_ok=True)
    for name, count in (("train", 60), ("valid", 4)):
        rows = [{"text": f"Row {i}: " + "the quick brown fox jumps over the lazy dog. " * 8} for i in range(count)]
        (data / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    mtpd = [sys.executable, "-m", "mtpd_mlx.cli"]
    onnx = [sys.executable, "-m", "mtpd_onnx"]
    steps = ["--iters", str(args.iters), "--batch-size", "1", "--max-seq-length", str(args.tokens), "--warmup", "2"]
    steps += [
        "--steps-per-eval",
        str(args.iters),
        "--val-batches",
        "1",
        "--steps-per-report",
        "5",
        "--overwrite",
        "--loss",
        "kl",
    ]
    prompt = ["-p", "The quick brown", "-m", "24"]
    model = [sys.executable, "-m", "tools.random_model", args.dims, str(args.out / "model"), "--num-heads", "0"]
    peaks = [measured("random model", [*model, "--scale", "2"])] if not base.exists() else []
    peaks.append(measured("inspect", [*mtpd, "inspect", str(base)]))
    trained = [
        *mtpd,
        "train",
        "--model",
        str(base),
        "--data",
        str(data),
        "--out",
        str(heads),
        "--num-heads",
        str(args.num_heads),
    ]
    peaks.append(measured("train", [*trained, *steps]))
    if not (heads / "mtp_config.json").is_file():
        print("real_size: error: no step was better than the start; try more --iters", file=sys.stderr)
        return 1
    peaks.append(measured("inspect heads", [*mtpd, "inspect", str(heads)]))
    peaks.append(measured("generate on MLX", [*mtpd, "generate", str(heads), *prompt]))
    exported = args.out / "onnx"
    command = [*mtpd, "export", str(heads), "--out", str(exported), "--capacity", "512", "--overwrite"]
    peaks.append(measured("export fp32", command))
    peaks.append(measured("generate on onnxruntime", [*onnx, "generate", str(exported), *prompt, "--provider", "cpu"]))
    peaks.append(measured("inspect export", [*mtpd, "inspect", str(exported)]))
    print(f"largest peak: {max(peaks):.2f} GB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
