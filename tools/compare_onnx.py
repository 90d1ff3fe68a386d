#!/usr/bin/env python3
"""The whole comparison of the portable decoder at given dims: model, export, peer, bench and verification, in one command.

    python -m tools.compare_onnx qwen3-0.6b OUT                      # random weights, fp16 on CUDA, K = 4 and 8
    python -m tools.compare_onnx llama-107m OUT --heads HEADS --prompts FILE --precision fp16 int4 --num-heads 4
    python -m tools.compare_onnx qwen3-0.6b OUT --provider cpu --precision fp32 int4

Random weights give timings (their drafts are never right); `--heads`, a trained checkpoint, gives tokens per second too.
The peer is built by onnxruntime-genai's builder (needs torch and transformers), or filled from `--skeleton`, or left out
where neither is there. OUT/results.json grows step by step; what is in it is not done again. Run from the repository root.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tools.paths import DEMO, python_path
from tools.random_model import DIMS

PROMPTS = DEMO / "text" / "prompts.jsonl"


def command(*words: object) -> str:
    """Runs `python -m words`; its standard output. RuntimeError with the last line of its errors."""
    program = [sys.executable, "-m", *map(str, words)]
    done = subprocess.run(program, capture_output=True, text=True, env=os.environ | python_path(), check=False)
    if done.returncode and not done.stdout.startswith("{"):
        raise RuntimeError(f"{words[0]} {words[1]}: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    return done.stdout


class Comparison:
    """OUT and what is known so far."""

    def __init__(self, args: argparse.Namespace):
        self.args, self.out = args, args.out
        self.out.mkdir(parents=True, exist_ok=True)
        self.file = self.out / "results.json"
        self.results: dict[str, Any] = json.loads(self.file.read_text()) if self.file.exists() else {}

    def step(self, name: str, *words: object) -> None:
        """One command whose JSON (or text) is kept under `name`; a failure is recorded and does not stop the others."""
        if name in self.results and "error" not in self.results[name]:
            return
        started = time.perf_counter()
        try:
            text = command(*words)
            result = json.loads(text) if text.startswith("{") else {"text": text.strip()}
        except (RuntimeError, ValueError) as error:
            result = {"error": str(error)}
        seconds = time.perf_counter() - started
        self.results[name] = {**result, "seconds": round(seconds, 1)}
        self.file.write_text(json.dumps(self.results, indent=2) + "\n")
        print(f"{name}: {result.get('error', 'done')} ({seconds:.0f} s)", flush=True)

    def run(self) -> None:
        args = self.args
        heads = args.heads or self.out / "model" / "heads"
        if args.heads is None and not heads.is_dir():
            options: list[object] = ["--num-heads", max(args.num_heads), "--scale", 2]
            if args.draft_vocab is not None:
                options += ["--draft-vocab", args.draft_vocab]
            command("tools.random_model", args.dims, self.out / "model", *options)
        base = args.model or self.out / "model" / "base"
        peer = self.peer(base)
        for precision in args.precision:
            for k in args.num_heads:
                for bits in args.draft_head_bits:
                    self.measure(heads, precision, k, bits, peer)

    def peer(self, base: Path) -> list[object]:
        """The flag that adds the peer, where there is one. It computes in fp16 on CUDA and fp32 on CPU."""
        folder, precision = self.out / "genai", "fp16" if self.args.provider == "cuda" else "fp32"
        if self.args.skeleton is not None:
            self.step("peer", "tools.genai_peer", "fill", self.args.skeleton, base, folder)
        else:
            options = ["--precision", precision, "--provider", self.args.provider]
            self.step("peer", "tools.genai_peer", "build", base, folder, *options)
        return [] if "error" in self.results["peer"] else ["--genai", folder]

    def measure(self, heads: Path, precision: str, k: int, bits: int, peer: list[object]) -> None:
        args, name = self.args, f"{precision} K={k}" + (f" drafts int{bits}" if bits else "")
        folder, provider = self.out / (f"{precision}-{k}" + (f"-{bits}" if bits else "")), args.provider
        export = ["--precision", precision, "--num-draft-tokens", k, "--capacity", args.capacity]
        if precision.startswith("int") and provider == "cuda":
            export += ["--activations", "fp16"]
        if bits:
            export += ["--draft-head-bits", bits]
        if args.model is not None:
            export += ["--model", args.model]
        if not folder.is_dir():
            self.step(f"{name} export", "mtpd_onnx", "export", heads, "--out", folder, *export)
        common: list[object] = [folder, "--provider", provider, "--prompts", args.prompts, "--json"]
        length: list[object] = ["--max-tokens", args.max_tokens, "--limit", args.limit]
        self.step(f"{name} bench", "mtpd_onnx", "bench", *common, *length, "--repeats", args.repeats, *peer)
        if args.verify:
            length = ["--max-tokens", args.verify_tokens, "--limit", args.verify]
            self.step(f"{name} verify", "mtpd_onnx", "verify", *common, *length, *([] if args.sampling else ["--greedy-only"]))

    def table(self) -> str:
        from mtpd_mlx.text.tables import format_table

        rows = []
        for name, r in self.results.items():
            if name.endswith(" bench") and "error" not in r:
                genai = "" if r["genai_tok_s"] is None else f"{r['genai_tok_s']:.0f}"
                numbers = [f"{r[key]:.3f}" for key in ("plain_ms", "round_ms", "round_over_plain", "tau")]
                ratio = "" if r["floor_ratio"] is None else f"{r['floor_ratio']:.2f}"
                rows.append([name[:-6], f"{r['plain_tok_s']:.0f}", f"{r['mtp_tok_s']:.0f}", genai, *numbers, ratio])
        return format_table(
            rows, ["", "plain tok/s", "mtp tok/s", "genai tok/s", "plain ms", "round ms", "ratio", "tau", "floor"]
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dims", help=f"{', '.join(DIMS)}, or a config.json (of the random model)")
    parser.add_argument("out", type=Path)
    parser.add_argument("--heads", type=Path, help="a trained checkpoint instead of random weights")
    parser.add_argument("--model", type=Path, help="its base, where it is not where the checkpoint says (the peer needs it)")
    parser.add_argument("--draft-vocab", type=int, metavar="D", help="of the random heads (default: the whole vocabulary)")
    parser.add_argument("--provider", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--precision", nargs="+", default=["fp16"], metavar="P", help="default: fp16")
    parser.add_argument("--num-heads", nargs="+", type=int, default=[4, 8], metavar="K", help="default: 4 8")
    parser.add_argument(
        "--draft-head-bits", nargs="+", type=int, choices=(0, 4, 8), default=[0], help="of mtpd export; 0: not given (default)"
    )
    parser.add_argument("--skeleton", type=Path, help="of the peer (tools.genai_peer skeleton), where torch is not installed")
    parser.add_argument("--prompts", type=Path, default=PROMPTS, help="default: the demo's")
    parser.add_argument("--capacity", type=int, default=1024)
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--limit", type=int, default=4, help="prompts that are timed (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--verify", type=int, default=0, metavar="N", help="prompts whose texts are compared (default: none)")
    parser.add_argument("--verify-tokens", type=int, default=256)
    parser.add_argument("--sampling", action="store_true", help="with --verify: the sampling test too")
    args = parser.parse_args()
    if args.heads is not None and args.model is None and (args.heads / "base").is_dir():
        args.model = args.heads / "base"
    if args.heads is not None and args.model is None:
        print("compare_onnx: error: --heads: needs --model, the folder of its base", file=sys.stderr)
        return 1
    comparison = Comparison(args)
    try:
        comparison.run()
    except (RuntimeError, OSError) as error:
        print(f"compare_onnx: error: {error}", file=sys.stderr)
        return 1
    print(comparison.table())
    steps = [r for name, r in comparison.results.items() if name != "peer"]
    return int(any("error" in r or r.get("passed") is False for r in steps))


if __name__ == "__main__":
    sys.exit(main())
