"""mtpd verify."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from mtpd_mlx.commands.flags import add_model_arguments, decoding_options, load_model, xtc_special_tokens
from mtpd_mlx.options.sampling_flags import add_sampling_arguments, sampling_from

# Rounded activations round logits: texts may part where two of them are this close, and only there.
TOLERANCE = {"float32": 0.0, "float16": 0.25, "bfloat16": 1.0}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    add = parser.add_argument
    add("--prompts", type=Path, required=True, metavar="FILE", help="prompts (.jsonl or .txt)")
    add("-m", "--max-tokens", type=int, default=128, metavar="N", help="per prompt (default: %(default)s)")
    add("--limit", type=int, metavar="N", help="use only the first prompts")
    add("--num-draft-tokens", type=int, metavar="K", help="drafts per round (default: all heads)")
    add("--tolerance", type=float, metavar="X", help="top-2 margin below which a difference is a near-tie")
    add("--greedy-only", action="store_true", help="leave the sampling test out")
    add("--json", action="store_true", help="print one JSON object")
    add_sampling_arguments(parser, temp=0.8, seed=0)


def run(args: argparse.Namespace) -> int:
    from mtpd_mlx.speculative.verify import check_tolerance, describe
    from mtpd_mlx.text.prompts import encode_prompts
    from mtpd_mlx.text.tokenizer import Tokenizer

    sampling = sampling_from(args)
    check_tolerance(args.tolerance)
    if sampling.greedy and not args.greedy_only:
        raise ValueError("--temp 0 leaves nothing to draw; give a temperature, or --greedy-only")
    base, heads = load_model(args)
    tokenizer = Tokenizer.from_folder(base.path)
    room = base.context_length - args.max_tokens - heads.num_heads - 1
    prompts = [(p.id, p.tokens) for p in encode_prompts(args.prompts, tokenizer, room, args.limit)]
    report = examine(args, base, heads, prompts, None if args.greedy_only else sampling, xtc_special_tokens(tokenizer))
    kind = str(base.dtype).removeprefix("mlx.core.")
    options, tolerance = decoding_options(args), args.tolerance
    if tolerance is None:
        tolerance = 0.0 if options.exact else 1.0 if options.kv_bits or base.is_quantized else TOLERANCE[kind]
    passed = report.passed(tolerance)
    values = report.to_dict() | {"tolerance": tolerance, "passed": passed, "dtype": kind}
    print(json.dumps(values, indent=2) if args.json else describe(report, tolerance))
    return 0 if passed else 1


def examine(args: argparse.Namespace, base: Any, heads: Any, prompts: list, sampling: Any, special: tuple[int, ...]) -> Any:
    """Every text of `prompts`, plain, speculative and (where `sampling` is given) sampled. The base's own logits judge them."""
    from mtpd_mlx.decoding.open import open_decoder
    from mtpd_mlx.measure.step_model import MLXModel
    from mtpd_mlx.speculative.verify import Report, compare, decode, judge

    options, drafts, length = decoding_options(args), args.num_draft_tokens, args.max_tokens
    reference = MLXModel(base, None)
    dots = lambda: print(".", end="", file=sys.stderr, flush=True)  # noqa: E731
    plain, _ = decode(open_decoder(base, None, options.of_plain()), prompts, length, dots)
    ours = open_decoder(base, heads, options, drafts)
    speculative, tau = decode(ours, prompts, length, dots)
    report = Report(len(prompts), sum(map(len, plain)), compare(reference, prompts, plain, speculative))
    report.tau["greedy"] = tau
    if sampling is not None:
        sampled = open_decoder(base, heads, options, drafts, sampling=sampling, xtc_special_tokens=special)
        texts, report.tau["sampled"] = decode(sampled, prompts, length, dots)
        evidence = judge(reference, prompts, texts, sampling, special)
        report.sampled_tokens, report.sampling_p_value = evidence.count, evidence.p_value
        report.top_deviate = evidence.top_deviate
    print(file=sys.stderr)
    return report
