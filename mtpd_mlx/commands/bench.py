"""mtpd bench."""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from mtpd_mlx.commands.flags import add_model_arguments, as_tuned, load_model, xtc_special_tokens
from mtpd_mlx.options.sampling_flags import add_sampling_arguments, sampling_from


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    add = parser.add_argument
    add("--prompts", type=Path, nargs="+", required=True, metavar="FILE", help="prompt sets (.jsonl or .txt)")
    add("-m", "--max-tokens", type=int, default=128, metavar="N", help="per prompt (default: %(default)s)")
    add("--limit", type=int, default=8, metavar="N", help="use only the first prompts of a set (default: %(default)s)")
    add("--repeats", type=int, default=3, metavar="N", help="runs of each prompt (default: %(default)s)")
    add("--cool-down", type=float, default=0.0, metavar="S", help="seconds of rest after every text")
    add("--num-draft-tokens", type=int, metavar="K", help="drafts per round (default: as tuned here, or all heads)")
    add("--draft-model", metavar="MODEL", help="also time mlx_lm's own speculative decoding with this model")
    add("--json", action="store_true", help="print one JSON object")
    add("--svg", type=Path, metavar="FILE", help="also draw the figures")
    add_sampling_arguments(parser)


def run(args: argparse.Namespace) -> int:
    from mtpd_mlx.decoding.bench.run import describe
    from mtpd_mlx.decoding.bench.svg import draw
    from mtpd_mlx.speculative.bench import check_runs

    check_runs(args.max_tokens, args.repeats, args.cool_down)
    if args.svg is not None and (args.svg.is_dir() or not args.svg.parent.is_dir()):
        raise ValueError(f"--svg {args.svg}: expected a file in a folder that is there")
    values = measure(args)
    print(json.dumps(values, indent=2) if args.json else describe(values))
    if args.svg is not None:
        args.svg.write_text(draw(values))
    return 0


def measure(args: argparse.Namespace) -> dict[str, Any]:
    from mtpd_mlx.decoding.bench.arms import our_arm, stock_arm
    from mtpd_mlx.decoding.bench.run import measure as interleaved
    from mtpd_mlx.decoding.bench.run import summary
    from mtpd_mlx.decoding.open import open_decoder
    from mtpd_mlx.decoding.tuning.machine import device_kind, device_name
    from mtpd_mlx.measure.step_model import MLXModel
    from mtpd_mlx.model.base import load_base
    from mtpd_mlx.speculative.verify import compare
    from mtpd_mlx.text.prompts import encode_prompts, set_names
    from mtpd_mlx.text.tokenizer import Tokenizer

    sampling, files = sampling_from(args), list(zip(set_names(args.prompts), args.prompts, strict=True))
    base, heads = load_model(args)
    options, drafts = as_tuned(args, base, args.num_draft_tokens)
    tokenizer = Tokenizer.from_folder(base.path)
    room = base.context_length - args.max_tokens - heads.num_heads - 1
    sets = {name: [p.tokens for p in encode_prompts(file, tokenizer, room, args.limit)] for name, file in files}
    special = xtc_special_tokens(tokenizer)
    drawing: dict[str, Any] = {"sampling": sampling, "xtc_special_tokens": special}
    quick = replace(options, exact=False)
    plain = open_decoder(base, None, quick.of_plain(), **drawing)
    ours = open_decoder(base, heads if drafts != 0 else None, quick, drafts, **drawing)
    arms = [stock_arm(base, sampling, special), our_arm("plain", plain, plain=True), our_arm("mtpd", ours)]
    if args.draft_model is not None:
        draft = load_base(args.draft_model, dequantize=bool(args.dequantize), dtype=base.dtype)
        arms.append(stock_arm(base, sampling, special, draft.model, max(1, ours.num_draft_tokens)))
    if options.exact:
        arms.append(our_arm("exact", open_decoder(base, heads, options, drafts, **drawing)))
    dots = lambda: print(".", end="", file=sys.stderr, flush=True)  # noqa: E731
    results = interleaved(arms, sets, args.max_tokens, args.repeats, args.cool_down, dots)
    print(file=sys.stderr)
    values = {
        "device": device_name(),
        "backend": device_kind(),
        "dtype": str(base.dtype).removeprefix("mlx.core."),
        "num_draft_tokens": ours.num_draft_tokens,
        "plan": str(ours.plan),
        "plain_plan": str(plain.plan),
        "plan_ms": ours.plan_milliseconds,
        "plain_plan_ms": plain.plan_milliseconds,
        "temp": sampling.temp,
        "max_tokens": args.max_tokens,
        "repeats": args.repeats,
        **summary(results, sampling.greedy),
    }
    if sampling.greedy:
        named = [(f"{name} {i + 1}", p) for name, prompts in sets.items() for i, p in enumerate(prompts)]
        pairs = {arm: first_runs(results, results.arms[arm], sets) for arm in ("stock", "mtpd")}
        found = compare(MLXModel(base, None), named, pairs["stock"], pairs["mtpd"])
        values["first_divergences"] = [vars(d) for d in found]
    return values


def first_runs(results: Any, arm: Any, sets: dict[str, Any]) -> list[list[int]]:
    """The tokens of the first repeat of every prompt."""
    return [
        run.tokens
        for name, runs, _ in results.sets
        for run in arm.runs[runs][: len(sets[name])]
    ]  # fmt: skip
