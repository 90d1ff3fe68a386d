"""`mtpd bench`: stock mlx_lm and our decoders, timed on the same prompts.
Called by mtpd_mlx/cli.py; `mtpd doctor` measures with it."""

import json
import sys
from dataclasses import replace
from typing import Any

from mtpd_mlx.commands.loading import load_model, open_rounds, xtc_special_tokens
from mtpd_mlx.options.base import RunnableOptions
from mtpd_mlx.options.decode import DecodingConfig
from mtpd_mlx.options.measure import BenchOptions
from mtpd_mlx.options.sampling import SamplingOptions
from mtpd_mlx.text.messages import dot

OPTIONS = (RunnableOptions, BenchOptions, DecodingConfig, SamplingOptions)
EXAMPLES = ("mtpd bench heads --prompts prompts.jsonl", "mtpd bench heads --prompts prompts.jsonl -m 256 --svg bench.svg")


def run(place: RunnableOptions, bench: BenchOptions, decoding: DecodingConfig, sampling: SamplingOptions) -> int:
    from mtpd_mlx.decoding.bench.run import describe
    from mtpd_mlx.decoding.bench.svg import draw
    from mtpd_mlx.files.atomic import write_text

    values = measure(place, bench, decoding, sampling)
    print(json.dumps(values, indent=2) if bench.json else describe(values))
    if bench.svg is not None:
        write_text(bench.svg, draw(values))
    return 0


def measure(place: RunnableOptions, bench: BenchOptions, decoding: DecodingConfig, sampling: SamplingOptions) -> dict[str, Any]:
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

    files = list(zip(set_names(bench.prompts), bench.prompts, strict=True))
    base, heads = load_model(place)
    tokenizer = Tokenizer.from_folder(base.path)
    room = base.context_length - bench.max_tokens - heads.num_heads - 1
    sets = {
        name: [p.tokens for p in encode_prompts(file, tokenizer, room, bench.limit, chat=not bench.ignore_chat_template)]
        for name, file in files
    }
    special = xtc_special_tokens(tokenizer)
    drawing: dict[str, Any] = {"sampling": sampling, "xtc_special_tokens": special}
    quick = replace(decoding, exact=False)
    plain = open_decoder(base, None, quick.of_plain(), **drawing)
    afresh = {"remeasure": True} if bench.num_draft_tokens is None else {}
    ours = open_rounds(place, quick, base, heads, bench.num_draft_tokens, bench.lookup, **drawing, **afresh)
    arms = [stock_arm(base, sampling, special), our_arm("plain", plain, plain=True), our_arm("mtpd", ours)]
    if bench.draft_model is not None:
        draft = load_base(bench.draft_model, dequantize=bool(place.dequantize), dtype=base.dtype)
        arms.append(stock_arm(base, sampling, special, draft.model, max(1, ours.num_draft_tokens)))
    if decoding.exact:
        arms.append(our_arm("exact", open_decoder(base, heads, decoding, num_draft_tokens=bench.num_draft_tokens, **drawing)))
    results = interleaved(arms, sets, bench.max_tokens, bench.repeats, bench.cool_down, dot)
    print(file=sys.stderr)
    values = {
        "model": str(base.path),
        "num_heads": heads.num_heads,
        "device": device_name(),
        "backend": device_kind(),
        "dtype": str(base.dtype).removeprefix("mlx.core."),
        "num_draft_tokens": ours.num_draft_tokens,
        "plan": str(ours.plan),
        "plain_plan": str(plain.plan),
        "plan_ms": ours.plan_milliseconds,
        "plain_plan_ms": plain.plan_milliseconds,
        "temp": sampling.temp,
        "max_tokens": bench.max_tokens,
        "repeats": bench.repeats,
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
