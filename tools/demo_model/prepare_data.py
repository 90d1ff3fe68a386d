#!/usr/bin/env python3
"""Text, tokenizer and held-out prompts of the small demo model, from openly licensed dialogues.

    python -m tools.demo_model.prepare_data --source SOURCE --out OUT

Reads SOURCE/train/dialog_*.jsonl.xz (rows with "text") and writes to OUT: train/valid/test.jsonl ({"text"} rows, one dialogue
each), prompts.jsonl, a byte-level BPE in Hugging Face form under OUT/tokenizer, and stats.json. Run it from the
repository root.
"""

import argparse
import hashlib
import json
import random
import re
import unicodedata
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from tools.experiments.texts import END, PAD, read_jsonl, train_tokenizer

SOURCES = {  # file: licence
    "dialog_sgd": "CC-BY-SA-4.0",
    "dialog_taskmaster4": "CC-BY-4.0",
    "dialog_self_dialogue": "BSD-3-Clause",
    "dialog_topical_chat_part": "CDLA-Sharing-1.0",
    "dialog_synthetic_persona": "CC-BY-4.0",
}
SERVICE = ("dialog_sgd", "dialog_taskmaster4")  # the domain that prompts come from
CHAT_TEMPLATE = (
    "{% for m in messages %}"
    "{{ {'user': 'User', 'assistant': 'Assistant', 'system': 'System'}[m['role']] }}: {{ m['content'] | trim }}\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
VALID_SHARE, TEST_DIALOGUES, PROMPTS = 0.02, 200, 64


def clean(text: str) -> str | None:
    """One dialogue with plain punctuation and single spaces; None if too short, too long or not mostly ASCII."""
    text = unicodedata.normalize("NFKC", text).translate(str.maketrans("“”‘’–—…", "\"\"''--."))
    lines = [re.sub(r"\s+", " ", line).strip() for line in text.split("\n")]
    text = "\n".join(line for line in lines if line)
    plain = sum(c.isascii() for c in text)
    return text if 80 <= len(text) <= 6000 and plain >= 0.98 * len(text) and text.count("\n") >= 2 else None


def read_source(folder: Path, name: str) -> list[str]:
    texts = [clean(row["text"]) for row in read_jsonl(folder / "train" / f"{name}.jsonl.xz")]
    return list(dict.fromkeys(t for t in texts if t is not None))


def write_tokenizer(tokenizer: Tokenizer, folder: Path, context: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END,
        "pad_token": PAD,
        "clean_up_tokenization_spaces": False,
        "model_max_length": context,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def make_prompts(dialogues: list[str], rng: random.Random) -> list[dict[str, Any]]:
    """Held-out dialogues cut where the assistant begins its 2nd to 4th turn."""
    rows = []
    for text in dialogues:
        lines = text.split("\n")
        cuts = [i for i, line in enumerate(lines) if line.startswith("Assistant:") and 2 <= i <= 7 and i + 2 < len(lines)]
        if cuts:
            cut = rng.choice(cuts)
            said = (line.split(":", 1) for line in lines[:cut])
            messages = [{"role": role.lower(), "content": text.strip()} for role, text in said]
            reference = "\n".join([lines[cut].removeprefix("Assistant:").strip(), *lines[cut + 1 :]])
            rows.append({"id": f"service/{len(rows)}", "messages": messages, "reference": reference})
    return rows[:PROMPTS]


def write_rows(file: Path, rows: list[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help="folder that holds train/dialog_*.jsonl.xz")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--vocab-size", type=int, default=4096)
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    train: list[str] = []
    valid: list[str] = []
    test: list[str] = []
    for name in SOURCES:
        texts = read_source(args.source, name)
        rng.shuffle(texts)
        held = TEST_DIALOGUES if name == "dialog_sgd" else 0
        test += texts[:held]
        cut = held + round(VALID_SHARE * len(texts)) if name in SERVICE else held
        valid += texts[held:cut]
        train += texts[cut:]
        print(f"{name}: {len(texts)} dialogues, {sum(map(len, texts)) / 1e6:.1f} MB")
    rng.shuffle(train)
    args.out.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer(train, args.vocab_size)
    write_tokenizer(tokenizer, args.out / "tokenizer", args.context)
    stats: dict[str, object] = {"vocab_size": tokenizer.get_vocab_size(), "licences": SOURCES, "seed": args.seed}
    for name, texts in (("train", train), ("valid", valid), ("test", test)):
        file = args.out / f"{name}.jsonl"
        write_rows(file, [{"text": t} for t in texts])
        tokens = sum(len(e.ids) + 1 for e in tokenizer.encode_batch(texts))
        stats[name] = {
            "rows": len(texts),
            "tokens": tokens,
            "bytes": sum(len(t.encode()) for t in texts),
            "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        }
        print(f"{name}: {stats[name]}")
    write_rows(args.out / "prompts.jsonl", make_prompts(test, rng))
    (args.out / "stats.json").write_text(json.dumps(stats, indent=2) + "\n")


if __name__ == "__main__":
    main()
