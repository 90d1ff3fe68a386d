#!/usr/bin/env python3
"""kill -9 at random moments while a cache is written, data is distilled and heads are trained: every resume must go on, and
the result must be that of a run nobody disturbed.

    python -m tools.crash_test --kills 20

Uses the bundled model and a little of its text; works in a temporary folder. Exit code 1 at the first thing that is wrong.
Run it from the repository root.
"""

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tools.paths import DEMO

TRAINING = ["--num-heads", "2", "--warmup", "2", "--save-every", "2", "--steps-per-report", "1", "--steps-per-eval", "5"]
COMMANDS = {
    "cache": [
        "cache",
        "--model",
        str(DEMO / "base"),
        "--dequantize",
        "--max-seq-length",
        "64",
        "--top-n",
        "16",
        "--shard-mb",
        "0.5",
    ],
    "distill-data": ["distill-data", "--model", str(DEMO / "base"), "--dequantize", "--max-tokens", "12", "--batch-size", "2"],
    "train": ["train", "--model", str(DEMO / "base"), "--dequantize", "--max-seq-length", "32", "--iters", "30", *TRAINING],
}


def start(arguments: list[str]) -> subprocess.Popen:
    command = [sys.executable, "-m", "mtpd_mlx.cli", *arguments]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def finish(arguments: list[str]) -> float:
    """Runs to the end; seconds taken."""
    started = time.monotonic()
    process = start(arguments)
    error = process.communicate()[1]
    if process.returncode != 0:
        sys.exit(f"{' '.join(arguments)}: exit code {process.returncode}: {error.strip().splitlines()[-1]}")
    return time.monotonic() - started


def check_whole_files(out: Path) -> None:
    """Every file under a final name is complete (temporary ones begin with a dot)."""
    from mtpd_mlx.files.safetensors import read_header

    for file in out.rglob("*"):
        if not file.is_file() or any(part.startswith(".") for part in file.relative_to(out).parts):
            continue
        if file.suffix == ".json":
            json.loads(file.read_text())
        elif file.suffix == ".safetensors":
            read_header(file)  # refuses a truncated file


def outcome(command: str, out: Path) -> list:
    """What the run produced: digests of data files, or the losses of the training log."""
    if command == "train":
        rows = [json.loads(line) for line in (out / "train_log.jsonl").read_text().splitlines()]
        return [[float(r["iter"]), r["loss"]] for r in rows if "loss" in r]
    files = sorted(out.glob("*.safetensors" if command == "cache" else "*.jsonl"))
    return [(f.name, hashlib.sha256(f.read_bytes()).hexdigest()) for f in files]


def crash(command: str, arguments: list[str], folder: Path, kills: int, rng: random.Random) -> None:
    whole, out = folder / f"{command}-whole", folder / f"{command}-killed"
    seconds = finish([*arguments, "--out", str(whole)])
    killed = finished = 0
    resume = False
    while killed < kills:
        process = start([*arguments, "--out", str(out), *(["--resume"] if resume else [])])
        time.sleep(rng.uniform(0.25, 1.0) * seconds * (0.7 if not resume else 0.9))
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            killed += 1
        error = process.communicate()[1]
        check_whole_files(out)
        begun = {"cache": "cache.json", "distill-data": "part.jsonl", "train": "resume-*"}[command]
        if process.returncode not in (0, -signal.SIGKILL):
            sys.exit(f"{command}: exit code {process.returncode}: {error.strip().splitlines()[-1]}")
        if process.returncode == 0:  # done before the kill: compare and begin again
            compare(command, whole, out)
            finished += 1
            out = folder / f"{command}-killed-{finished}"
        resume = any(out.glob(begun)) if out.exists() else False
        if not resume and out.exists():
            arguments = [a for a in arguments if a != "--overwrite"] + ["--overwrite"]
    finish([*[a for a in arguments if a != "--overwrite"], "--out", str(out), *(["--resume"] if resume else ["--overwrite"])])
    compare(command, whole, out)
    print(
        f"{command}: {killed} kills over {finished + 1} runs of {seconds:.0f} s, every resume went on, results equal",
        flush=True,
    )


def compare(command: str, whole: Path, out: Path) -> None:
    """Data must be the same bytes; losses equal to 1e-4 (threads of the BLAS may sum in another order)."""
    expected, got = outcome(command, whole), outcome(command, out)
    for a, b in zip(expected, got, strict=False):
        if a != b and not (command == "train" and a[0] == b[0] and abs(a[1] - b[1]) < 1e-4 * abs(a[1])):
            sys.exit(f"{command}: {out} differs from an undisturbed run: got {b}, expected {a}")
    if len(expected) != len(got):
        sys.exit(f"{command}: {out} has {len(got)} entries, an undisturbed run {len(expected)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="per command")
    parser.add_argument("--commands", nargs="+", choices=list(COMMANDS), default=list(COMMANDS))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text = (DEMO / "text" / "train.jsonl").read_text().splitlines()
        (folder / "data").mkdir()
        (folder / "data" / "train.jsonl").write_text("\n".join(text[:16]) + "\n")
        (folder / "data" / "valid.jsonl").write_text("\n".join(text[16:18]) + "\n")
        for command in args.commands:
            data = (
                ["--prompts", str(folder / "data" / "train.jsonl")]
                if command == "distill-data"
                else ["--data", str(folder / "data")]
            )
            crash(command, [*COMMANDS[command], *data], folder, args.kills, random.Random(args.seed))


if __name__ == "__main__":
    main()
