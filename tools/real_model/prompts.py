"""`choose_prompts`: the prompt files of the recipe, made of a user's. Called by the stage `prompts`.

Written into one folder: NAME.jsonl for every part of the own text, eval/SET.jsonl for every evaluation set, counts.json.
"""

import json
import random
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mtpd_mlx.files.atomic import replacing_folder, write_json
from mtpd_mlx.text.prompts import Prompt, encode_prompt, read_prompts, set_names
from mtpd_mlx.text.tokenizer import Tokenizer
from tools.real_model.held_out import HeldOut
from tools.real_model.settings import Size

SEED = 20261128
EVAL, COUNTS = "eval", "counts.json"
LEAST = 16  # prompts to write text from


def choose_prompts(files: list[Path], eval_files: list[Path], model: Path, size: Size, out: Path) -> dict[str, Any]:
    """Fills `out`; returns what counts.json says. ValueError in one line where prompts cannot be read or too few are left."""
    tokenizer, held = Tokenizer.from_folder(model), HeldOut.of_files(eval_files)
    dropped: Counter[str] = Counter()
    kept = list(_kept((p for file in files for p in read_prompts(file)), tokenizer, held, size.prompt_tokens, dropped))
    if len(kept) < LEAST:
        left_out = ", ".join(f"{count} {why}" for why, count in dropped.items()) or "none"
        raise ValueError(f"--prompts: got {len(kept)} prompts (left out: {left_out}), expected at least {LEAST}")
    draw = random.Random(SEED)
    kept = draw.sample(kept, min(len(kept), size.prompts or len(kept)))
    with replacing_folder(out) as folder:
        counts: dict[str, Any] = {"prompts": len(kept), "left_out": dict(dropped), "parts": {}, "eval": {}}
        for own in size.own:
            part = draw.sample(kept, max(1, round(own.share * len(kept))))
            counts["parts"][own.name] = _write(folder / f"{own.name}.jsonl", part)
        (folder / EVAL).mkdir()
        for name, file in zip(set_names(eval_files), eval_files, strict=True):
            rows = [row for row in map(_as_row, _eval_rows(file)) if row is not None]
            if rows:
                part = draw.sample(rows, min(size.eval_prompts, len(rows)))
                counts["eval"][name] = _write(folder / EVAL / f"{Path(name).stem}.jsonl", part)
        write_json(folder / COUNTS, counts)
    return counts


def _kept(
    prompts: Iterable[Prompt], tokenizer: Tokenizer, held: HeldOut, longest: int, dropped: Counter[str]
) -> Iterable[dict[str, Any]]:
    seen = set()
    for prompt in prompts:
        messages = prompt.messages or [{"role": "user", "content": prompt.text}]
        row: dict[str, Any] = {"prompt": prompt.text} if prompt.messages is None else {"messages": messages}
        row |= {} if prompt.tools is None else {"tools": prompt.tools}
        key = json.dumps([messages, prompt.tools], sort_keys=True)
        if key in seen:
            dropped["double"] += 1
        elif held.holds("\n".join(str(m.get("content") or "") for m in messages)):
            dropped["overlaps with evaluation"] += 1
        elif len(encode_prompt(prompt, tokenizer)) > longest:
            dropped[f"over {longest} tokens"] += 1
        else:
            seen.add(key)
            yield row


def _eval_rows(file: Path) -> list[dict[str, Any]]:
    lines = file.read_text(encoding="utf-8").split("\n")
    if file.suffix.lower() != ".jsonl":
        return [{"prompt": line} for line in lines if line.strip()]
    return [json.loads(line) for line in lines if line.strip()]


def _as_row(row: Any) -> dict[str, Any] | None:
    """What `mtpd eval` reads of an evaluation row: published sets hold much else."""
    if isinstance(row, dict):
        for name in ("messages", "prompt"):
            if row.get(name) and isinstance(row[name], list if name == "messages" else str):
                return {name: row[name]}
    return None


def _write(file: Path, rows: list[dict[str, Any]]) -> int:
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return len(rows)
