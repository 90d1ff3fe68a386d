"""mtpd verify."""

import json
import sys
from typing import Any

from mtpd_mlx.commands.loading import load_model, xtc_special_tokens
from mtpd_mlx.options.base import RunnableOptions
from mtpd_mlx.options.decode import DecodingConfig
from mtpd_mlx.options.measure import DraftedVerifyOptions, check_sampled
from mtpd_mlx.options.sampling import JudgedSampling

OPTIONS = (RunnableOptions, DraftedVerifyOptions, DecodingConfig, JudgedSampling)

# Rounded activations round logits: texts may part where two of them are this close, and only there.
TOLERANCE = {"float32": 0.0, "float16": 0.25, "bfloat16": 1.0}


def check(place: RunnableOptions, verify: DraftedVerifyOptions, options: DecodingConfig, sampling: JudgedSampling) -> None:
    check_sampled(verify, sampling)


def run(place: RunnableOptions, verify: DraftedVerifyOptions, options: DecodingConfig, sampling: JudgedSampling) -> int:
    from mtpd_mlx.speculative.verify import describe
    from mtpd_mlx.text.prompts import encode_prompts
    from mtpd_mlx.text.tokenizer import Tokenizer

    base, heads = load_model(place)
    tokenizer = Tokenizer.from_folder(base.path)
    room = base.context_length - verify.max_tokens - heads.num_heads - 1
    prompts = [(p.id, p.tokens) for p in encode_prompts(verify.prompts, tokenizer, room, verify.limit)]
    report = examine(
        verify,
        options,
        base=base,
        heads=heads,
        prompts=prompts,
        sampling=None if verify.greedy_only else sampling,
        special=xtc_special_tokens(tokenizer),
    )
    kind = str(base.dtype).removeprefix("mlx.core.")
    tolerance = verify.tolerance
    if tolerance is None:
        tolerance = 0.0 if options.exact else 1.0 if options.kv_bits or base.is_quantized else TOLERANCE[kind]
    passed = report.passed(tolerance)
    values = report.to_dict() | {"tolerance": tolerance, "passed": passed, "dtype": kind}
    print(json.dumps(values, indent=2) if verify.json else describe(report, tolerance))
    return 0 if passed else 1


def examine(
    verify: DraftedVerifyOptions,
    options: DecodingConfig,
    *,
    base: Any,
    heads: Any,
    prompts: list[tuple[str, list[int]]],
    sampling: JudgedSampling | None,
    special: tuple[int, ...],
) -> Any:
    """Every text of `prompts`, plain, speculative and (where `sampling` is given) sampled. The base's own logits judge them."""
    from mtpd_mlx.decoding.open import open_decoder
    from mtpd_mlx.measure.step_model import MLXModel
    from mtpd_mlx.speculative.verify import Report, compare, decode, judge

    drafts, length = verify.num_draft_tokens, verify.max_tokens
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
