"""Training rows, held-out rows by domain and seven sets of prompts, read and tokenised.
Called by tools/experiments/prepare.py."""

import json
import lzma
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

END, PAD = "<|endoftext|>", "<|pad|>"
HELD_OUT = "heldout_lm"
PROMPT_FILES = {
    "gsm8k": "gsm8k_test",
    "humaneval": "humaneval",
    "mbpp": "mbpp",
    "mt_bench": "mt_bench",
    "aqua_rat": "aqua_rat",
    "truthfulqa": "truthfulqa",
}
PROMPT_SETS = (*PROMPT_FILES, HELD_OUT)


@dataclass(frozen=True)
class HeldOut:
    """One held-out text: where it comes from, its beginning (the prompt) and the whole."""

    id: str
    domain: str
    prompt: str
    text: str


def as_text(row: dict[str, Any], answer: str = "response") -> str:
    """Training rows are text, or a prompt, a line end and the answer."""
    return row["text"] if "text" in row else f"{row['prompt']}\n{row.get(answer) or ''}"


def read_jsonl(file: Path) -> list[dict[str, Any]]:
    content = lzma.decompress(file.read_bytes()) if file.suffix == ".xz" else file.read_bytes()
    return [json.loads(line) for line in content.split(b"\n") if line]


def train_files(source: Path) -> list[Path]:
    files = sorted((source / "train").glob("*.jsonl.xz"))
    if not files:
        raise ValueError(f"{source}/train: no .jsonl.xz files")
    return files


def share_of(file: Path, share: float, rng: random.Random) -> list[str]:
    """A random `share` of a file's rows, by characters."""
    rows = [as_text(row) for row in read_jsonl(file)]
    rng.shuffle(rows)
    wanted, taken, size = share * sum(map(len, rows)), [], 0
    for text in rows:
        if size >= wanted:
            break
        taken.append(text)
        size += len(text)
    return taken


def train_tokenizer(texts: list[str], vocab_size: int) -> Tokenizer:
    """Byte-level BPE that splits words as GPT-2 does; every digit is a token of its own."""
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


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """In Hugging Face form."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": END, "pad_token": PAD}))


def encode_stream(tokenizer: Tokenizer, texts: list[str], batch: int = 4096) -> np.ndarray:
    """All texts end to end, each followed by END: uint16 [n]."""
    end = tokenizer.token_to_id(END)
    parts = [
        np.array([*encoding.ids, end], dtype=np.uint16)
        for start in range(0, len(texts), batch)
        for encoding in tokenizer.encode_batch_fast(texts[start : start + batch], add_special_tokens=False)
    ]
    return np.concatenate(parts)


def token_bytes(tokenizer: Tokenizer) -> np.ndarray:
    """Bytes of text that each token stands for, int64 [V]: special tokens 0."""
    pieces = (tokenizer.id_to_token(i) for i in range(tokenizer.get_vocab_size()))
    return np.array([0 if piece in (END, PAD) else len(piece) for piece in pieces])


def held_out(source: Path) -> list[HeldOut]:
    rows = read_jsonl(source / "eval" / f"{HELD_OUT}.jsonl")
    whole = (row["prompt"] + (row["reference"] or "") if row["kind"] == "text" else as_text(row, "reference") for row in rows)
    begin = (row["prompt"] if row["kind"] == "text" else f"{row['prompt']}\n" for row in rows)
    return [HeldOut(r["id"], r["source"], b, w) for r, b, w in zip(rows, begin, whole, strict=True)]


def set_prompts(source: Path) -> Iterator[tuple[str, list[HeldOut]]]:
    """(name, prompts) of the sets but heldout_lm. Code to be completed stays as it is, questions end with a line end."""
    for name, file in PROMPT_FILES.items():
        tail = "" if name == "humaneval" else "\n"
        rows = read_jsonl(source / "eval" / f"{file}.jsonl")
        yield name, [HeldOut(str(row["id"]), name, row["prompt"] + tail, "") for row in rows]
