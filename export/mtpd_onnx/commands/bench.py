"""`mtpd-onnx bench`: plain and speculative decoding, and onnxruntime-genai, timed on the same prompts.
Called by mtpd_onnx/cli.py."""

import json
import sys
from typing import Any

from mtpd_mlx.options.measure import GraphBenchOptions
from mtpd_mlx.options.runtime import RuntimeOptions
from mtpd_mlx.options.sampling import GraphSampling
from mtpd_mlx.text.messages import dot

OPTIONS = (RuntimeOptions, GraphBenchOptions, GraphSampling)
EXAMPLES = ("mtpd-onnx bench onnx --prompts prompts.jsonl",)


def run(runtime: RuntimeOptions, bench: GraphBenchOptions, sampling: GraphSampling) -> int:
    from mtpd_mlx.text.prompts import encode_prompts
    from mtpd_mlx.text.tokenizer import Tokenizer
    from mtpd_onnx.manifest import read_manifest

    manifest = read_manifest(runtime.folder, runtime.verify)
    if manifest.layout != "fused":
        raise ValueError(
            f"bench: got a folder of layout {manifest.layout}, expected fused; export the checkpoint without --layout"
        )
    room = manifest.capacity - bench.max_tokens - manifest.num_heads - 1
    prompts = encode_prompts(
        bench.prompts, Tokenizer.from_folder(runtime.folder), room, bench.limit, chat=not bench.ignore_chat_template
    )
    values = measure(runtime, bench, sampling, manifest, [p.tokens for p in prompts])
    print(json.dumps(values, indent=2) if bench.json else describe(values))
    return 0


def measure(
    runtime: RuntimeOptions,
    bench: GraphBenchOptions,
    sampling: GraphSampling,
    manifest: Any,
    prompts: list[list[int]],
) -> dict[str, Any]:
    from mtpd_mlx.speculative.bench import acceptance, backend_arm, identical, interleave
    from mtpd_onnx.runtime.bandwidth import bandwidth
    from mtpd_onnx.runtime.open import open_folder

    how = runtime.of_folder()
    first: Any = open_folder(runtime.folder, plain=True, sampling=sampling, **how)
    how |= {"provider": first.provider, "verify": False}
    plain = backend_arm("plain", first, plain=True)
    drafts: dict[str, Any] = {"num_draft_tokens": bench.num_draft_tokens or None, "lookup": bench.lookup, "choose": True}
    drafts["remeasure"] = True
    backend = open_folder(runtime.folder, plain=bench.num_draft_tokens == 0, sampling=sampling, **drafts, **how)
    speculative = backend_arm("mtp", backend)
    arms = [plain, speculative]
    if bench.genai is not None:
        from mtpd_onnx.peer.process import genai_arm

        arms.append(genai_arm(bench.genai, manifest.capacity, runtime.num_threads))
    interleave(arms, prompts, bench.max_tokens, repeats=bench.repeats, cool_down=bench.cool_down, see=dot)
    print(file=sys.stderr)
    step, round_ = plain.milliseconds_per_pass, speculative.milliseconds_per_pass
    assert step is not None and round_ is not None and speculative.stats is not None
    speed = bandwidth(first.provider)
    floor = None if speed is None else 1000 * manifest.weights_read["plain.onnx"] / speed
    values = {
        "provider": first.provider,
        "precision": manifest.precision,
        "activations": manifest.activations,
        "num_draft_tokens": backend.num_draft_tokens,
        "prompts": len(prompts),
        "max_tokens": bench.max_tokens,
        "repeats": bench.repeats,
        "temp": sampling.temp,
        "plain_tok_s": plain.tokens_per_second,
        "mtp_tok_s": speculative.tokens_per_second,
        "genai_tok_s": arms[2].tokens_per_second if len(arms) > 2 else None,
        "speedup": speculative.tokens_per_second / plain.tokens_per_second,
        "plain_ms": step,
        "round_ms": round_,
        "round_over_plain": round_ / step,
        **acceptance(speculative),
        "tokens_per_pass": speculative.stats.tokens_per_pass,
        "chosen": speculative.stats.to_dict()["chosen"],
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
        f"a round costs {v['round_over_plain']:.2f} plain steps and brings {v['tokens_per_pass']:.2f} tokens",
        f"tau {v['tau']:.2f}   CAR " + " ".join(f"{c:.3f}" for c in v["car"]),
    ]
    if len(v["chosen"]) > 1:
        lines.append("rounds: " + ", ".join(f"{name} {c['rounds']} ({c['tokens']} tokens)" for name, c in v["chosen"].items()))
    if v["floor_ms"] is not None:
        lines.append(
            f"reading the weights once takes {v['floor_ms']:.3f} ms at {v['bandwidth_gb_s']:.0f} GB/s: "
            f"a plain step takes {v['floor_ratio']:.1f} times as long"
        )
    if v["identical"] is not None:
        lines.append(f"{v['identical']:.0%} of the texts identical to plain decoding")
    return "\n".join(lines)
