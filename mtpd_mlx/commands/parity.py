"""`mtpd parity`: MLX and ONNX decoding compared token by token.
Called by mtpd_mlx/cli.py."""

import json
from pathlib import Path
from typing import Any

from mtpd_mlx.commands.loading import base_keywords
from mtpd_mlx.options.base import MeasuredOptions
from mtpd_mlx.options.measure import ParityOptions
from mtpd_mlx.text.tables import format_table

OPTIONS = (MeasuredOptions, ParityOptions)
EXAMPLES = ("mtpd parity heads onnx --prompts prompts.jsonl",)


def run(place: MeasuredOptions, parity: ParityOptions) -> int:
    from mtpd_onnx.manifest import read_manifest

    from mtpd_mlx.hub.pull import resolve_folder
    from mtpd_mlx.measure.parity import compare
    from mtpd_mlx.model.load_save import load_for_decoding
    from mtpd_mlx.text.prompts import encode_prompts
    from mtpd_mlx.text.tokenizer import Tokenizer

    known = base_keywords(place) | {"dequantize": True, "dtype": place.dtype}
    base, heads, _ = load_for_decoding(Path(place.checkpoint), place.model, **known)
    folder = resolve_folder(parity.folder)
    manifest = read_manifest(folder)
    if manifest.base["fingerprint"] != base.fingerprint:
        raise ValueError(
            f"{parity.folder} was exported from another base than {base.path} (fingerprints "
            "differ); export the checkpoint again"
        )
    tokenizer = Tokenizer.from_folder(folder)
    room = min(base.context_length, manifest.capacity) - parity.max_tokens - manifest.num_heads - 1
    prompts = encode_prompts(parity.prompts, tokenizer, room, parity.limit, chat=not parity.ignore_chat_template)
    report = compare(
        base,
        heads,
        folder,
        prompts,
        parity.max_tokens,
        tokenizer.eos_token_ids,
        provider=parity.provider,
        step_by_step=parity.step_by_step,
    )
    print(json.dumps(report.to_dict(), indent=2) if parity.json else describe(report))
    return 1 if is_exact(manifest) and not report.tokens_equal else 0


def is_exact(manifest: Any) -> bool:
    """float32 arithmetic on the checkpoint's own weights: the tokens must be the same."""
    weights = manifest.record["weights"]
    return manifest.activations == "fp32" and not any(weights[name]["largest_error"] for name in ("base", "heads"))


def describe(report: Any) -> str:
    same = report.prompts - len(report.divergences)
    lines = [
        f"{same} of {report.prompts} prompts identical over {report.tokens} tokens; "
        f"largest logit difference {report.max_logit_diff:.2e}"
    ]
    for d in report.divergences:
        lines.append(
            f"  {d.prompt}: first difference at token {d.position} (MLX {d.mlx_token}, ONNX {d.onnx_token}), "
            f"top-2 margin {d.top2_margin:.2e}"
        )
    rows = [
        [str(k + 1), *(f"{table[name][k]:.3f}" for name in ("mlx", "onnx") for table in (report.car, report.ar))]
        for k in range(len(report.car["mlx"]))
    ]
    rows.append(["tau", f"{report.tau['mlx']:.3f}", "", f"{report.tau['onnx']:.3f}", ""])
    lines.append(format_table(rows, ["depth", "CAR MLX", "AR MLX", "CAR ONNX", "AR ONNX"]))
    return "\n".join(lines)
