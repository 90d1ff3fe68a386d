#!/usr/bin/env python3
"""Text for the experiments, tokenised once: a share of every train file, held-out text by domain, prompts of seven sets.

    python -m tools.experiments.prepare SOURCE OUT --vocab-size 8192 --share 0.7

SOURCE/train/*.jsonl.xz (rows with "text", or "prompt" and "response") and SOURCE/eval/*.jsonl. Writes OUT/train.npy (token ids
of all documents, each with its end token, in random order), OUT/eval.json (held-out texts and prompts as token ids) and
OUT/tokenizer (Hugging Face form). Run it from the repository root.
"""

import argparse
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from tools.experiments.texts import (
    HELD_OUT,
    HeldOut,
    encode_stream,
    held_out,
    save_tokenizer,
    set_prompts,
    share_of,
    token_bytes,
    train_files,
    train_tokenizer,
)

TOKENIZER_SAMPLE = 20_000  # texts that the tokenizer is trained on
TEXT_PROMPT_TOKENS = 64  # of a held-out text that has no prompt of its own


def prompts_of(tokenizer: Tokenizer, rows: list[HeldOut], count: int, longest: int) -> list[dict[str, Any]]:
    """The first `count` prompts of at most `longest` tokens."""
    chosen = []
    for row in rows:
        ids = tokenizer.encode(row.prompt, add_special_tokens=False).ids
        if row.domain == row.id.split("/")[1] and row.text.startswith(row.prompt) and not row.prompt.endswith("\n"):
            ids = ids[:TEXT_PROMPT_TOKENS]
        if 0 < len(ids) <= longest:
            chosen.append({"id": row.id, "domain": row.domain, "tokens": ids})
        if len(chosen) == count:
            break
    return chosen


def make_eval(source: Path, tokenizer: Tokenizer, args: argparse.Namespace, rng: random.Random) -> dict[str, Any]:
    held = held_out(source)
    rng.shuffle(held)
    prompts, texts = {}, {}
    for name, rows in set_prompts(source):
        rng.shuffle(rows)
        prompts[name] = prompts_of(tokenizer, rows, args.prompts, args.longest)
    prompts[HELD_OUT] = []
    for domain in sorted({h.domain for h in held}):
        own = [h for h in held if h.domain == domain]
        prompts[HELD_OUT] += prompts_of(tokenizer, own, args.prompts_per_domain, args.longest)
        texts[domain] = [tokenizer.encode(h.text, add_special_tokens=False).ids for h in own]
    return {"prompts": prompts, "texts": texts, "token_bytes": token_bytes(tokenizer).tolist()}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--vocab-size", type=int, default=8192)
    parser.add_argument("--share", type=float, default=1.0, help="of the rows of every train file")
    parser.add_argument("--prompts", type=int, default=64, help="per set")
    parser.add_argument("--prompts-per-domain", type=int, default=4, help="of heldout_lm")
    parser.add_argument("--longest", type=int, default=192, help="prompts of more tokens are left out")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    rng = random.Random(args.seed)
    texts = [text for file in train_files(args.source) for text in share_of(file, args.share, rng)]
    rng.shuffle(texts)
    tokenizer = train_tokenizer(texts[:: max(1, len(texts) // TOKENIZER_SAMPLE)], args.vocab_size)
    save_tokenizer(tokenizer, args.out / "tokenizer")
    evaluation = make_eval(args.source, tokenizer, args, rng)
    (args.out / "eval.json").write_text(json.dumps(evaluation, separators=(",", ":")))
    stream = encode_stream(tokenizer, texts)
    np.save(args.out / "train.npy", stream)
    size = sum(len(text.encode()) for text in texts)
    print(f"{len(texts)} rows, {size / 1e6:.1f} MB, {stream.size / 1e6:.1f} M tokens -> {args.out}")


if __name__ == "__main__":
    main()
