"""mtpd-onnx verify."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from mtpd_mlx.options.sampling_flags import add_sampling_arguments, sampling_from
from mtpd_mlx.speculative.sampling import Sampling
from mtpd_onnx.commands.runtime_flags import BUILT_IN, add_runtime_arguments, runtime_options

# Rounded activations round logits: texts may part where two of them are this close, and only there.
TOLERANCE = {"fp32": 0.0, "fp16": 0.25, "bf16": 1.0, "int8": 1.0}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_runtime_arguments(parser)
    parser.add_argument("--prompts", type=Path, required=True, metavar="FILE", help="prompts (.jsonl or .txt)")
    parser.add_argument("-m", "--max-tokens", type=int, default=128, metavar="N", help="per prompt (default: %(default)s)")
    parser.add_argument("--limit", type=int, metavar="N", help="use only the first prompts")
    parser.add_argument("--tolerance", type=float, metavar="X", help="top-2 margin below which a difference is a near-tie")
    parser.add_argument("--greedy-only", action="store_true", help="leave the sampling test out")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_sampling_arguments(parser, BUILT_IN, temp=0.8, seed=0)


def run(args: argparse.Namespace) -> int:
    from mtpd_mlx.speculative.verify import check_tolerance, describe
    from mtpd_mlx.text.prompts import encode_prompts
    from mtpd_mlx.text.tokenizer import Tokenizer
    from mtpd_onnx.manifest import read_manifest

    check_tolerance(args.tolerance)
    manifest, sampling = read_manifest(args.folder, args.verify), sampling_from(args)
    if manifest.layout != "fused":
        raise ValueError(f"verify: got a {manifest.layout} folder, expected fused")
    if sampling.greedy and not args.greedy_only:
        raise ValueError("verify: --temp 0 leaves nothing to draw; give a temperature, or --greedy-only")
    room = manifest.capacity - args.max_tokens - manifest.num_heads - 1
    prompts = encode_prompts(args.prompts, Tokenizer.from_folder(args.folder), room, args.limit)
    report = examine(args.folder, [(p.id, p.tokens) for p in prompts], args.max_tokens,
                     None if args.greedy_only else sampling, runtime_options(args))  # fmt: skip
    tolerance = TOLERANCE[manifest.activations] if args.tolerance is None else args.tolerance
    passed = report.passed(tolerance)
    values = report.to_dict() | {"tolerance": tolerance, "passed": passed}
    print(json.dumps(values, indent=2) if args.json else describe(report, tolerance))
    return 0 if passed else 1


def examine(
    folder: Path, prompts: list[tuple[str, list[int]]], max_tokens: int, sampling: Sampling | None, runtime: dict[str, Any]
) -> Any:
    """Every text of `prompts`, plain, speculative and (where `sampling` is given) sampled."""
    from mtpd_mlx.speculative.verify import Report, compare, decode, judge
    from mtpd_onnx.runtime.open import open_folder

    reference: Any = open_folder(folder, plain=True, **runtime)
    runtime = runtime | {"provider": reference.provider, "verify": False}  # said once, checked once
    dots = lambda: print(".", end="", file=sys.stderr, flush=True)  # noqa: E731
    plain, _ = decode(reference, prompts, max_tokens, dots)
    speculative, tau = decode(open_folder(folder, **runtime), prompts, max_tokens, dots)
    report = Report(len(prompts), sum(map(len, plain)), compare(reference, prompts, plain, speculative))
    report.tau["greedy"] = tau
    if sampling is not None:
        texts, report.tau["sampled"] = decode(open_folder(folder, sampling=sampling, **runtime), prompts, max_tokens, dots)
        evidence = judge(reference, prompts, texts, sampling)
        report.sampled_tokens, report.sampling_p_value = evidence.count, evidence.p_value
        report.top_deviate = evidence.top_deviate
    print(file=sys.stderr)
    return report
