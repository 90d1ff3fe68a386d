"""`mtpd-onnx verify`: speculative text compared with plain text, and the sampling test.
Called by mtpd_onnx/cli.py."""

import json
import sys
from typing import Any

from mtpd_mlx.options.measure import GraphVerifyOptions, check_sampled
from mtpd_mlx.options.runtime import RuntimeOptions
from mtpd_mlx.options.sampling import JudgedGraphSampling
from mtpd_mlx.text.messages import dot

OPTIONS = (RuntimeOptions, GraphVerifyOptions, JudgedGraphSampling)
EXAMPLES = ("mtpd-onnx verify onnx --prompts prompts.jsonl",)

# Rounded activations round logits: texts may part where two of them are this close, and only there.
TOLERANCE = {"fp32": 0.0, "fp16": 0.25, "bf16": 1.0, "int8": 1.0}


def check(runtime: RuntimeOptions, verify: GraphVerifyOptions, sampling: JudgedGraphSampling) -> None:
    check_sampled(verify, sampling)


def run(runtime: RuntimeOptions, verify: GraphVerifyOptions, sampling: JudgedGraphSampling) -> int:
    from mtpd_mlx.speculative.verify import describe, examine
    from mtpd_mlx.text.prompts import encode_prompts
    from mtpd_mlx.text.tokenizer import Tokenizer
    from mtpd_onnx.manifest import read_manifest
    from mtpd_onnx.runtime.open import open_folder

    manifest = read_manifest(runtime.folder, runtime.verify)
    if manifest.layout != "fused":
        raise ValueError(
            f"verify: got a folder of layout {manifest.layout}, expected fused; export the checkpoint without --layout"
        )
    room = manifest.capacity - verify.max_tokens - manifest.num_heads - 1
    prompts = encode_prompts(
        verify.prompts, Tokenizer.from_folder(runtime.folder), room, verify.limit, chat=not verify.ignore_chat_template
    )
    how = runtime.of_folder()
    reference: Any = open_folder(runtime.folder, plain=True, **how)
    drafts: dict[str, Any] = {"num_draft_tokens": verify.num_draft_tokens or None, "lookup": verify.lookup}
    drafts["plain"] = verify.num_draft_tokens == 0
    how |= {"provider": reference.provider, "verify": False}  # said once, checked once
    report = examine(
        reference,
        reference,
        lambda drawn: open_folder(runtime.folder, sampling=drawn, choose=True, **drafts, **how),
        [(p.id, p.tokens) for p in prompts],
        max_tokens=verify.max_tokens,
        sampling=None if verify.greedy_only else sampling,
        see=dot,
    )
    print(file=sys.stderr)
    tolerance = TOLERANCE[manifest.activations] if verify.tolerance is None else verify.tolerance
    passed = report.passed(tolerance)
    values = report.to_dict() | {"tolerance": tolerance, "passed": passed}
    print(json.dumps(values, indent=2) if verify.json else describe(report, tolerance))
    return 0 if passed else 1
