#!/usr/bin/env python3
"""Text of many kinds for the experiments: a share of every train file, a byte-level BPE, held-out text and prompts.

    python tools/experiments/prepare_text.py SOURCE OUT --vocab-size 8192 --megabytes 100

SOURCE/train/*.jsonl.xz (rows with "text", or "prompt" and "response") and SOURCE/eval/heldout_lm.jsonl. Writes OUT/train.jsonl,
OUT/valid.jsonl ({"text"} rows), OUT/prompts.jsonl (beginnings of held-out texts) and OUT/tokenizer (Hugging Face form).
"""

import argparse
import json
import lzma
import random
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

END, PAD = "<|endoftext|>", "<|pad|>"
PROMPT_CHARACTERS = 240
MEGABYTES = 323  # of SOURCE/train, unpacked


def as_text(row: dict) -> str:
    return row["text"] if "text" in row else f"{row['prompt']}\n{row['response']}"


def share_of(file: Path, share: float, rng: random.Random) -> list[str]:
    with lzma.open(file, "rt", encoding="utf-8") as f:
        rows = [as_text(json.loads(line)) for line in f]
    rng.shuffle(rows)
    wanted, taken, size = share * sum(map(len, rows)), [], 0
    for text in rows:
        if size >= wanted:
            break
        taken.append(text)
        size += len(text)
    return taken


def train_tokenizer(texts: list[str], vocab_size: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[END, PAD], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def write_rows(file: Path, rows: list[dict]) -> None:
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--vocab-size", type=int, default=8192)
    parser.add_argument("--megabytes", type=float, default=100, help="of training text")
    parser.add_argument("--prompts", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    files = sorted((args.source / "train").glob("*.jsonl.xz"))
    texts = [t for file in files for t in share_of(file, min(1.0, args.megabytes / MEGABYTES), rng)]
    rng.shuffle(texts)
    with (args.source / "eval" / "heldout_lm.jsonl").open(encoding="utf-8") as f:
        held = [json.loads(line) for line in f]
    rng.shuffle(held)
    held_texts = [f"{row['prompt']} {row.get('reference') or ''}".strip() for row in held]
    args.out.mkdir(parents=True, exist_ok=True)
    write_rows(args.out / "train.jsonl", [{"text": t} for t in texts])
    write_rows(args.out / "valid.jsonl", [{"text": t} for t in held_texts])
    prompts = [{"id": str(row["id"]), "prompt": row["prompt"][:PROMPT_CHARACTERS]} for row in held[: args.prompts]]
    write_rows(args.out / "prompts.jsonl", prompts)
    folder = args.out / "tokenizer"
    folder.mkdir(exist_ok=True)
    train_tokenizer(texts[:: max(1, len(texts) // 20_000)], args.vocab_size).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": END, "pad_token": PAD}))
    print(f"{len(texts)} rows, {sum(map(len, texts)) / 1e6:.1f} M characters -> {args.out}")


if __name__ == "__main__":
    main()
