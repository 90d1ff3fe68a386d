#!/usr/bin/env python3
"""What a benchmark needs of a model: its exports in several precisions, and onnxruntime-genai's folder.

    python -m tools.benchmark.prepare OUT --checkpoint HEADS --model BASE --precision fp32 int4 int4/fp32 --genai fp32 int4
    python -m tools.benchmark.prepare OUT --dims qwen3-0.6b --precision fp16 --provider cuda --genai fp16   # random weights

A precision is PRECISION or PRECISION/ACTIVATIONS of `mtpd export`. Random weights give the times of steps and rounds, whose
drafts are never right; a trained checkpoint gives tokens per second too. The peer is built by onnxruntime-genai's builder
(torch and transformers needed), or filled from --skeleton. What OUT holds is not made again. The last line is the command to
run. Run it from the repository root.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

from tools.paths import python_path
from tools.random_model import DIMS


def command(*words: object) -> None:
    """Runs `python -m words`. ValueError with the last line of its errors."""
    program = [sys.executable, "-m", *map(str, words)]
    done = subprocess.run(program, capture_output=True, text=True, env=os.environ | python_path(), check=False)
    if done.returncode:
        raise ValueError(f"{words[0]} {words[1]}: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")


def once(out: Path, *words: object) -> Path:
    """Makes the folder `out`, unless it is there."""
    if not out.is_dir():
        print(f"{out} ...", file=sys.stderr, flush=True)
        command(*words)
    return out


def prepare(args: argparse.Namespace) -> tuple[list[Path], list[Path]]:
    """(exported folders, the peer's)."""
    heads, base = args.checkpoint, args.model
    if args.dims is not None:
        options: list[object] = ["--num-heads", max(args.num_heads or [4]), "--scale", 2]
        options += [] if args.draft_vocab is None else ["--draft-vocab", args.draft_vocab]
        model = once(args.out / "model", "tools.random_model", args.dims, args.out / "model", *options)
        heads, base = model / "heads", model / "base"
    elif base is None and (heads / "base").is_dir():
        base = heads / "base"
    exports = [
        once(args.out / name(precision, k, bits), "mtpd_onnx", "export", heads, *export_words(args, precision, k, bits, base))
        for precision in args.precision
        for k in args.num_heads or [None]
        for bits in args.draft_head_bits
    ]
    return exports, [peer(args, precision, base) for precision in args.genai]


def name(precision: str, k: int | None, bits: int) -> str:
    words = [*precision.split("/"), *([] if k is None else [f"K{k}"]), *([f"drafts{bits}"] if bits else [])]
    return "-".join(words)


def export_words(args: argparse.Namespace, precision: str, k: int | None, bits: int, base: Path | None) -> list[object]:
    weights, _, activations = precision.partition("/")
    words: list[object] = ["--out", args.out / name(precision, k, bits), "--precision", weights, "--capacity", args.capacity]
    if not activations and weights.startswith("int") and args.provider == "cuda":
        activations = "fp16"
    for flag, value in (("--activations", activations), ("--num-draft-tokens", k), ("--draft-head-bits", bits)):
        words += [flag, value] if value else []
    return words + (["--model", base] if base is not None and args.dims is None else [])


def peer(args: argparse.Namespace, precision: str, base: Path | None) -> Path:
    out = args.out / f"genai-{precision}"
    if base is None:
        raise ValueError("--genai: expected --model, the folder of the base, with --checkpoint")
    if args.skeleton is not None:
        return once(out, "tools.genai_peer", "fill", args.skeleton, base, out)
    return once(out, "tools.genai_peer", "build", base, out, "--precision", precision, "--provider", args.provider)


def parse(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tools.benchmark.prepare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("out", type=Path)
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--checkpoint", type=Path, metavar="HEADS", help="heads to export")
    model.add_argument("--dims", help=f"of a random model: {', '.join(DIMS)}, or a config.json")
    add("--model", type=Path, metavar="BASE", help="the base of --checkpoint, where it is not where that says")
    add("--draft-vocab", type=int, metavar="D", help="of the random heads (default: the whole vocabulary)")
    add("--provider", choices=("cuda", "cpu"), default="cpu", help="default: %(default)s")
    add("--precision", nargs="+", default=["fp32"], metavar="P", help="default: fp32")
    add("--num-heads", nargs="+", type=int, metavar="K", help="exports of so many heads (default: all, random: 4)")
    add("--draft-head-bits", nargs="+", type=int, choices=(0, 4, 8), default=[0], help="of mtpd export; 0: not given (default)")
    add("--genai", nargs="+", default=[], metavar="P", help="precisions of the peer (default: none)")
    add("--skeleton", type=Path, help="of the peer (tools.genai_peer skeleton), where torch is not installed")
    add("--capacity", type=int, default=1024, help="default: %(default)s")
    return parser.parse_args(words)


def main() -> int:
    args = parse()
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        exports, peers = prepare(args)
    except (ValueError, OSError) as error:
        print(f"benchmark.prepare: error: {error}", file=sys.stderr)
        return 1
    words = ["python -m tools.benchmark RESULTS --onnx", *map(str, exports)]
    words += ["--genai", *map(str, peers)] if peers else []
    print(" ".join([*words, "--prompts FILE ..."]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
