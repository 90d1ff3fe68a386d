"""Times the peer's greedy decoding of random prompts."""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
from mtpd_onnx.peer.genai import GenaiPeer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path)
    parser.add_argument("--lengths", type=int, nargs="+", default=[64], help="tokens of the prompts")
    parser.add_argument("--max-tokens", type=int, default=128, help="default: %(default)s")
    parser.add_argument("--repeats", type=int, default=3, help="prompts of each length (default: %(default)s)")
    parser.add_argument("--capacity", type=int, default=1024, help="positions of the cache (default: %(default)s)")
    parser.add_argument("--num-threads", type=int, help="CPU threads (default: all cores)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="with all tokens, one object per prompt")


def run(args: argparse.Namespace) -> int:
    """One line per prompt: milliseconds per token after the first, mean and median."""
    peer, rng = GenaiPeer(args.folder, args.capacity, args.num_threads), np.random.default_rng(args.seed)
    peer.warm_up()
    for length in args.lengths:
        for _ in range(args.repeats):
            prompt = rng.integers(0, peer.vocab_size, length).tolist()
            tokens, prefill, decode = peer.generate(prompt, args.max_tokens)
            row: dict[str, Any] = {"prompt_tokens": length, "tokens": len(tokens), "prefill_ms": 1e3 * prefill}
            row["ms_per_token"] = 1e3 * decode / max(1, len(tokens) - 1)
            row["median_ms"] = 1e3 * statistics.median(peer.step_seconds or [0.0])
            if args.json:
                print(json.dumps(row | {"prompt": prompt, "text": tokens}), flush=True)
            else:
                print("  ".join(f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()), flush=True)
    return 0
