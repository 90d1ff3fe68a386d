"""mtpd-onnx bench."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from mtpd_mlx.options.sampling_flags import add_sampling_arguments, sampling_from
from mtpd_onnx.commands.runtime_flags import BUILT_IN, add_runtime_arguments, runtime_options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_runtime_arguments(parser)
    parser.add_argument("--prompts", type=Path, required=True, metavar="FILE", help="prompts (.jsonl or .txt)")
    parser.add_argument("-m", "--max-tokens", type=int, default=128, metavar="N", help="per prompt (default: %(default)s)")
    parser.add_argument("--limit", type=int, default=8, metavar="N", help="use only the first prompts (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="runs of each prompt (default: %(default)s)")
    parser.add_argument("--cool-down", type=float, default=0.0, metavar="S", help="seconds of rest after every text")
    parser.add_argument("--genai", type=Path, metavar="DIR", help="the same model as an onnxruntime-genai folder")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_sampling_arguments(parser, BUILT_IN)


def run(args: argparse.Namespace) -> int:
    from mtpd_mlx.text.prompts import encode_prompts
    from mtpd_mlx.text.tokenizer import Tokenizer
    from mtpd_onnx.manifest import read_manifest

    if args.max_tokens < 2 or args.repeats < 1:
        raise ValueError(f"bench: got --max-tokens {args.max_tokens} --repeats {args.repeats}, expected at least 2 and 1")
    manifest = read_manifest(args.folder, args.verify)
    if manifest.layout != "fused":
        raise ValueError(f"bench: got a {manifest.layout} folder, expected fused")
    room = manifest.capacity - args.max_tokens - manifest.num_heads - 1
    prompts = encode_prompts(args.prompts, Tokenizer.from_folder(args.folder), room, args.limit)
    values = measure(args, manifest, [p.tokens for p in prompts])
    print(json.dumps(values, indent=2) if args.json else describe(values))
    return 0


def measure(args: argparse.Namespace, manifest: Any, prompts: list[list[int]]) -> dict[str, Any]:
    from mtpd_mlx.speculative.bench import acceptance, backend_arm, identical, interleave
    from mtpd_onnx.runtime.bandwidth import bandwidth
    from mtpd_onnx.runtime.open import open_folder

    sampling, runtime = sampling_from(args), runtime_options(args)
    first: Any = open_folder(args.folder, plain=True, sampling=sampling, **runtime)
    runtime |= {"provider": first.provider, "verify": False}
    plain = backend_arm("plain", first, plain=True)
    speculative = backend_arm("mtp", open_folder(args.folder, sampling=sampling, **runtime))
    arms = [plain, speculative]
    if args.genai is not None:
        from mtpd_onnx.peer.process import genai_arm

        arms.append(genai_arm(args.genai, manifest.capacity, args.num_threads))
    dots = lambda: print(".", end="", file=sys.stderr, flush=True)  # noqa: E731
    interleave(arms, prompts, args.max_tokens, args.repeats, args.cool_down, dots)
    print(file=sys.stderr)
    step, round_ = plain.milliseconds_per_pass, speculative.milliseconds_per_pass
    assert step is not None and round_ is not None
    speed = bandwidth(first.provider)
    floor = None if speed is None else 1000 * manifest.weights_read["plain.onnx"] / speed
    values = {
        "provider": first.provider,
        "precision": manifest.precision,
        "activations": manifest.activations,
        "num_draft_tokens": manifest.num_heads,
        "prompts": len(prompts),
        "max_tokens": args.max_tokens,
        "repeats": args.repeats,
        "temp": args.temp,
        "plain_tok_s": plain.tokens_per_second,
        "mtp_tok_s": speculative.tokens_per_second,
        "genai_tok_s": arms[2].tokens_per_second if len(arms) > 2 else None,
        "speedup": speculative.tokens_per_second / plain.tokens_per_second,
        "plain_ms": step,
        "round_ms": round_,
        "round_over_plain": round_ / step,
        **acceptance(speculative),
        "prefill_ms": 1000 * plain.prefill_seconds,
        "bandwidth_gb_s": None if speed is None else speed / 1e9,
        "floor_ms": floor,
        "floor_ratio": None if floor is None else step / floor,
        "identical": identical(plain, speculative) if sampling.greedy else None,
    }
    if len(arms) > 2 and sampling.greedy:
        values["identical_to_genai"] = identical(plain, arms[2])
    return values


def describe(v: dict[str, Any]) -> str:
    from mtpd_mlx.text.tables import format_table
    from mtpd_onnx import precision

    rows = [["plain", f"{v['plain_tok_s']:.1f}", f"{v['plain_ms']:.3f}", "1.00"]]
    rows.append(["mtp", f"{v['mtp_tok_s']:.1f}", f"{v['round_ms']:.3f}", f"{v['speedup']:.2f}"])
    if v["genai_tok_s"] is not None:
        rows.append(["genai", f"{v['genai_tok_s']:.1f}", "", f"{v['genai_tok_s'] / v['plain_tok_s']:.2f}"])
    lines = [
        f"{precision.describe(v['precision'], v['activations'])} on {v['provider']}, "
        f"{v['num_draft_tokens']} drafts, {v['prompts']} prompts x "
        f"{v['max_tokens']} tokens x {v['repeats']}, medians",
        format_table(rows, ["arm", "tokens/s", "ms/pass", "speed-up"]),
        f"a round costs {v['round_over_plain']:.2f} plain steps and brings tau {v['tau']:.2f} tokens",
        "CAR   " + " ".join(f"{c:.3f}" for c in v["car"]),
    ]
    if v["floor_ms"] is not None:
        lines.append(
            f"reading the weights once takes {v['floor_ms']:.3f} ms at {v['bandwidth_gb_s']:.0f} GB/s: "
            f"a plain step takes {v['floor_ratio']:.1f} times as long"
        )
    if v["identical"] is not None:
        lines.append(f"{v['identical']:.0%} of the texts identical to plain decoding")
    return "\n".join(lines)
