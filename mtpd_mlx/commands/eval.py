"""`mtpd eval`: CAR, AR and tau of a checkpoint on prompts.
Called by mtpd_mlx/cli.py."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from mtpd_mlx.commands.loading import base_keywords
from mtpd_mlx.options.base import MeasuredOptions
from mtpd_mlx.options.measure import EvalOptions
from mtpd_mlx.speculative.finite import NotFiniteError
from mtpd_mlx.text.tables import format_table

OPTIONS = (MeasuredOptions, EvalOptions)
EXAMPLES = ("mtpd eval heads --prompts prompts.jsonl",)


def run(place: MeasuredOptions, evaluation: EvalOptions) -> int:
    from mtpd_mlx.measure.evaluate import measure, repetition
    from mtpd_mlx.model.generate import generate_greedy
    from mtpd_mlx.model.load_save import load_for_decoding
    from mtpd_mlx.text.prompts import encode_prompts, set_names
    from mtpd_mlx.text.tokenizer import Tokenizer

    files = list(zip(set_names(evaluation.prompts), evaluation.prompts, strict=True))
    known = base_keywords(place) | {"dequantize": None, "dtype": place.dtype}
    base, heads, config = load_for_decoding(Path(place.checkpoint), place.model, **known)
    assert base.path is not None
    tokenizer = Tokenizer.from_folder(base.path)
    sets: dict[str, Any] = {}
    for name, file in files:
        prompts = encode_prompts(
            file,
            tokenizer,
            base.context_length - evaluation.max_tokens,
            evaluation.limit,
            chat=not evaluation.ignore_chat_template,
        )
        texts = generate_greedy(base, [p.tokens for p in prompts], evaluation.max_tokens, tokenizer.eos_token_ids)
        sets[name] = measure(base, heads, texts) | {
            "prompts": len(prompts),
            "tokens": sum(len(t.tokens) for t in texts),
            "distinct4": repetition(texts),
        }
    result = {"checkpoint": place.checkpoint, "num_heads": heads.num_heads, "max_tokens": evaluation.max_tokens, "sets": sets}
    measured = config.record.get("eval", {})
    result["training_validation"] = {k: measured.get(k) for k in ("start", "validation")}
    if evaluation.valid:
        result["base_valid_loss"] = base_loss(base, evaluation.valid, tokenizer)
    print(json.dumps(result, indent=2) if evaluation.json else describe(result))
    return 0


def base_loss(base: Any, file: Path, tokenizer: Any) -> float:
    """Mean cross-entropy (nats per token) of the base on a text file."""
    from mtpd_mlx.data import load_text
    from mtpd_mlx.data.packing import target_masks
    from mtpd_mlx.losses.definitions import cross_entropy
    from mtpd_mlx.model.heads import shift_left
    from mtpd_mlx.model.runtime import mx
    from mtpd_mlx.options.train import DataConfig

    total, count = 0.0, 0
    cfg = DataConfig(max_seq_length=min(DataConfig.max_seq_length, base.context_length))
    for batch in load_text(str(file), cfg, tokenizer).iter_batches(cfg.batch_size):
        tokens, mask = mx.array(batch.tokens), target_masks(batch, 0)[0]
        loss = cross_entropy(base.logits(base.norm(base.trunk(tokens))), shift_left(tokens, 1)) * mx.array(mask)
        total, count = total + float(np.array(loss.sum())), count + int(mask.sum())
    if not math.isfinite(total):
        raise NotFiniteError(f"--valid {file}: the base's logits are not finite on it (loss {total})")
    return total / max(count, 1)


def describe(result: dict[str, Any]) -> str:
    lines = []
    for name, figures in result["sets"].items():
        lines.append(
            f"{name}: {figures['prompts']} prompts, {figures['tokens']} tokens, {figures['rounds']} rounds, "
            f"distinct-4 {figures['distinct4']:.3f}"
        )
        novel = figures["novel"]
        rows = [
            [str(k + 1), *(f"{source[m][k]:.3f}" for source in (figures, novel) for m in ("car", "ar"))]
            for k in range(result["num_heads"])
        ]
        rows.append(["tau", f"{figures['tau']:.3f}", "", f"{novel['tau']:.3f}", ""])
        lines.append(format_table(rows, ["depth", "CAR", "AR", "CAR (new 4-grams)", "AR (new 4-grams)"]) + "\n")
    validation = result["training_validation"]
    if validation["start"] and validation["validation"]:
        before, after = validation["start"]["main_loss"], validation["validation"]["main_loss"]
        if before != after:  # the base trained, too
            lines.append(f"base validation loss before and after training: {before:.4f} -> {after:.4f}")
    if "base_valid_loss" in result:
        lines.append(f"base loss on the given text: {result['base_valid_loss']:.4f} nats per token")
    return "\n".join(lines)
