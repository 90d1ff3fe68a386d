"""mtpd tune."""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from mtpd_mlx.commands.flags import add_model_arguments, decoding_options, load_model

LEAST_GAIN = 1.02  # below this over plain decoding, speculation is not worth its memory


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    add = parser.add_argument
    add("--prompts", type=Path, required=True, metavar="FILE", help="prompts like those to come (.jsonl or .txt)")
    add("-m", "--max-tokens", type=int, default=96, metavar="N", help="per prompt (default: %(default)s)")
    add("--limit", type=int, default=4, metavar="N", help="use only the first prompts (default: %(default)s)")
    add("--repeats", type=int, default=2, metavar="N", help="runs of each prompt (default: %(default)s)")
    add("--cool-down", type=float, default=0.0, metavar="S", help="seconds of rest after every text")
    add("--dry-run", action="store_true", help="measure, but store nothing")
    add("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    from mtpd_mlx.decoding.tuning.machine import machine_key
    from mtpd_mlx.decoding.tuning.stored import write_tuned
    from mtpd_mlx.hub.pull import resolve_folder
    from mtpd_mlx.speculative.bench import check_runs

    check_runs(args.max_tokens, args.repeats, args.cool_down)
    folder = resolve_folder(args.checkpoint)
    if not args.dry_run and folder.is_dir() and not os.access(folder, os.W_OK | os.X_OK):
        raise ValueError(f"{folder}: cannot be written, so nothing can be stored; --dry-run measures only")
    base, heads = load_model(args)
    speeds, tuned = measure(args, base, heads)
    machine = machine_key(base.dtype)
    if not args.dry_run:
        write_tuned(folder, machine, tuned)
    values = {"machine": machine, "tokens_per_second": speeds, "chosen": vars(tuned), "stored": not args.dry_run}
    print(json.dumps(values, indent=2) if args.json else describe(values, tuned.name))
    return 0


def measure(args: argparse.Namespace, base: Any, heads: Any) -> tuple[dict[str, float], Any]:
    """(tokens per second of every arm, the choice)."""
    from mtpd_mlx.decoding.bench.arms import our_arm, stock_arm
    from mtpd_mlx.decoding.open import open_decoder
    from mtpd_mlx.decoding.tuning.costs import DRAFTS
    from mtpd_mlx.speculative.bench import interleave
    from mtpd_mlx.speculative.sampling import Sampling
    from mtpd_mlx.text.prompts import encode_prompts
    from mtpd_mlx.text.tokenizer import Tokenizer

    tokenizer, options = Tokenizer.from_folder(base.path), decoding_options(args)
    room = base.context_length - args.max_tokens - heads.num_heads - 1
    prompts = [p.tokens for p in encode_prompts(args.prompts, tokenizer, room, args.limit)]
    counts = sorted({k for k in DRAFTS if k < heads.num_heads} | {heads.num_heads})
    decoders = {k: open_decoder(base, heads, options, k) for k in counts}
    plain = our_arm("plain", open_decoder(base, None, options.of_plain()), plain=True)
    arms = {k: our_arm(f"K={k}", decoder) for k, decoder in decoders.items()}
    stock = stock_arm(base, Sampling())  # greedy
    dots = lambda: print(".", end="", file=sys.stderr, flush=True)  # noqa: E731
    interleave([stock, plain, *arms.values()], prompts, args.max_tokens, args.repeats, args.cool_down, dots)
    print(file=sys.stderr)
    speeds = {arm.name: arm.tokens_per_second for arm in (stock, plain, *arms.values())}
    return speeds, choose(speeds, {k: str(d.plan) for k, d in decoders.items()})


def choose(speeds: dict[str, float], plans: dict[int, str]) -> Any:
    """The fastest number of drafts, or plain decoding where none gains enough over the faster of both plain arms."""
    from mtpd_mlx.decoding.tuning.stored import Tuned

    drafts = max(plans, key=lambda k: speeds[f"K={k}"])
    if speeds[f"K={drafts}"] < LEAST_GAIN * max(speeds["plain"], speeds["stock"]):
        return Tuned(0, "auto", speeds["plain"] / speeds["stock"])
    return Tuned(drafts, plans[drafts], speeds[f"K={drafts}"] / speeds["stock"])


def describe(v: dict[str, Any], name: str) -> str:
    from mtpd_mlx.text.tables import format_table

    stock = v["tokens_per_second"]["stock"]
    rows = [[arm, f"{speed:.1f}", f"{speed / stock:.2f}"] for arm, speed in v["tokens_per_second"].items()]
    kept = "stored; mtpd generate, chat and bench follow it on this machine" if v["stored"] else "not stored (--dry-run)"
    return "\n".join([v["machine"], format_table(rows, ["arm", "tokens/s", "vs stock"]), f"chosen: {name} ({kept})"])
