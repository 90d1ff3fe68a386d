"""mtpd parity."""

import argparse
import json
from pathlib import Path
from typing import Any

from mtpd_mlx.commands.flags import add_base_flags, base_options
from mtpd_mlx.text.tables import format_table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", help="heads checkpoint")
    parser.add_argument("folder", help="folder exported from it")
    parser.add_argument("--model", help="base to use instead of the recorded one (same weights)")
    add_base_flags(parser)
    parser.add_argument("--prompts", type=Path, required=True, metavar="FILE", help="prompts (.jsonl or .txt)")
    parser.add_argument("-m", "--max-tokens", type=int, default=64, help="tokens per prompt (default: %(default)s)")
    parser.add_argument("--limit", type=int, help="use only the first prompts")
    parser.add_argument("--provider", choices=("auto", "cuda", "cpu"), default="cpu", help="default: %(default)s")
    parser.add_argument("--step-by-step", action="store_true", help="on MLX pass by pass, not as mtpd generate decodes")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    from mtpd_onnx.manifest import read_manifest

    from mtpd_mlx.hub.pull import resolve_folder
    from mtpd_mlx.measure.parity import compare
    from mtpd_mlx.model.load_save import load_for_decoding
    from mtpd_mlx.text.prompts import encode_prompts
    from mtpd_mlx.text.tokenizer import Tokenizer

    base, heads, config = load_for_decoding(Path(args.checkpoint), args.model, True, **base_options(args))
    folder = resolve_folder(args.folder)
    manifest = read_manifest(folder)
    if manifest.base["fingerprint"] != config.base.fingerprint:
        raise ValueError(f"{args.folder} was exported from another base than {args.checkpoint} (fingerprints differ)")
    tokenizer = Tokenizer.from_folder(folder)
    room = min(base.context_length, manifest.capacity) - args.max_tokens - manifest.num_heads - 1
    prompts = encode_prompts(args.prompts, tokenizer, room, args.limit)
    how = {"provider": args.provider, "step_by_step": args.step_by_step}
    report = compare(base, heads, folder, prompts, args.max_tokens, tokenizer.eos_token_ids, **how)
    print(json.dumps(report.to_dict(), indent=2) if args.json else describe(report))
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
