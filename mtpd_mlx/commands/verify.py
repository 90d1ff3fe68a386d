"""`mtpd verify`: speculative text compared with plain text, and the sampling test.
Called by mtpd_mlx/cli.py."""

import json
import sys
from typing import Any

from mtpd_mlx.commands.loading import load_model, open_rounds, xtc_special_tokens
from mtpd_mlx.options.base import RunnableOptions
from mtpd_mlx.options.decode import DecodingConfig
from mtpd_mlx.options.measure import DraftedVerifyOptions, check_sampled
from mtpd_mlx.options.sampling import JudgedSampling
from mtpd_mlx.options.text import check_plain
from mtpd_mlx.speculative.sampling import Sampling
from mtpd_mlx.text.messages import dot

OPTIONS = (RunnableOptions, DraftedVerifyOptions, DecodingConfig, JudgedSampling)
EXAMPLES = ("mtpd verify heads --prompts prompts.jsonl",)

# Rounded activations round logits: texts may part where two of them are this close, and only there.
TOLERANCE = {"float32": 0.0, "float16": 0.25, "bfloat16": 1.0}


def check(place: RunnableOptions, verify: DraftedVerifyOptions, options: DecodingConfig, sampling: JudgedSampling) -> None:
    check_plain(False, verify.num_draft_tokens, options.exact)
    check_sampled(verify, sampling)


def run(place: RunnableOptions, verify: DraftedVerifyOptions, options: DecodingConfig, sampling: JudgedSampling) -> int:
    from mtpd_mlx.decoding.open import open_decoder
    from mtpd_mlx.measure.step_model import MLXModel
    from mtpd_mlx.speculative.verify import describe, examine
    from mtpd_mlx.text.prompts import encode_prompts
    from mtpd_mlx.text.tokenizer import Tokenizer

    base, heads = load_model(place)
    tokenizer = Tokenizer.from_folder(base.path)
    room = base.context_length - verify.max_tokens - heads.num_heads - 1
    prompts = [
        (p.id, p.tokens)
        for p in encode_prompts(verify.prompts, tokenizer, room, verify.limit, chat=not verify.ignore_chat_template)
    ]
    special = xtc_special_tokens(tokenizer)

    def rounds(drawn: Sampling | None) -> Any:
        drawing = {"sampling": drawn or Sampling(), "xtc_special_tokens": special}
        return open_rounds(place, options, base, heads, verify.num_draft_tokens, verify.lookup, **drawing)

    report = examine(
        MLXModel(base, None),
        open_decoder(base, None, options.of_plain()),
        rounds,
        prompts,
        max_tokens=verify.max_tokens,
        sampling=None if verify.greedy_only else sampling,
        special=special,
        see=dot,
    )
    print(file=sys.stderr)
    kind = str(base.dtype).removeprefix("mlx.core.")
    tolerance = verify.tolerance
    if tolerance is None:
        tolerance = 0.0 if options.exact else 1.0 if options.kv_bits or base.is_quantized else TOLERANCE[kind]
    passed = report.passed(tolerance)
    values = report.to_dict() | {"tolerance": tolerance, "passed": passed, "dtype": kind}
    print(json.dumps(values, indent=2) if verify.json else describe(report, tolerance))
    return 0 if passed else 1
