"""mtpd-onnx verify."""

import json
import sys
from typing import Any

from mtpd_mlx.options.measure import VerifyOptions, check_sampled
from mtpd_mlx.options.runtime import RuntimeOptions
from mtpd_mlx.options.sampling import JudgedGraphSampling
from mtpd_mlx.speculative.sampling import Sampling

OPTIONS = (RuntimeOptions, VerifyOptions, JudgedGraphSampling)

# Rounded activations round logits: texts may part where two of them are this close, and only there.
TOLERANCE = {"fp32": 0.0, "fp16": 0.25, "bf16": 1.0, "int8": 1.0}


def check(runtime: RuntimeOptions, verify: VerifyOptions, sampling: JudgedGraphSampling) -> None:
    check_sampled(verify, sampling)


def run(runtime: RuntimeOptions, verify: VerifyOptions, sampling: JudgedGraphSampling) -> int:
    from mtpd_mlx.speculative.verify import describe
    from mtpd_mlx.text.prompts import encode_prompts
    from mtpd_mlx.text.tokenizer import Tokenizer
    from mtpd_onnx.manifest import read_manifest

    manifest = read_manifest(runtime.folder, runtime.verify)
    if manifest.layout != "fused":
        raise ValueError(f"verify: got a {manifest.layout} folder, expected fused")
    room = manifest.capacity - verify.max_tokens - manifest.num_heads - 1
    prompts = encode_prompts(verify.prompts, Tokenizer.from_folder(runtime.folder), room, verify.limit)
    drawn = None if verify.greedy_only else sampling
    report = examine(runtime, [(p.id, p.tokens) for p in prompts], verify.max_tokens, drawn)
    tolerance = TOLERANCE[manifest.activations] if verify.tolerance is None else verify.tolerance
    passed = report.passed(tolerance)
    values = report.to_dict() | {"tolerance": tolerance, "passed": passed}
    print(json.dumps(values, indent=2) if verify.json else describe(report, tolerance))
    return 0 if passed else 1


def examine(runtime: RuntimeOptions, prompts: list[tuple[str, list[int]]], max_tokens: int, sampling: Sampling | None) -> Any:
    """Every text of `prompts`, plain, speculative and (where `sampling` is given) sampled."""
    from mtpd_mlx.speculative.verify import Report, compare, decode, judge
    from mtpd_onnx.runtime.open import open_folder

    folder, how = runtime.folder, runtime.of_folder()
    reference: Any = open_folder(folder, plain=True, **how)
    how |= {"provider": reference.provider, "verify": False}  # said once, checked once
    dots = lambda: print(".", end="", file=sys.stderr, flush=True)  # noqa: E731
    plain, _ = decode(reference, prompts, max_tokens, dots)
    speculative, tau = decode(open_folder(folder, **how), prompts, max_tokens, dots)
    report = Report(len(prompts), sum(map(len, plain)), compare(reference, prompts, plain, speculative))
    report.tau["greedy"] = tau
    if sampling is not None:
        texts, report.tau["sampled"] = decode(open_folder(folder, sampling=sampling, **how), prompts, max_tokens, dots)
        evidence = judge(reference, prompts, texts, sampling)
        report.sampled_tokens, report.sampling_p_value = evidence.count, evidence.p_value
        report.top_deviate = evidence.top_deviate
    print(file=sys.stderr)
    return report
