#!/usr/bin/env python3
"""The bundled slice of text: service dialogues from the training split, validation text and held-out prompts.

    python -m tools.demo_model.bundle_slice --data DATA --out OUT

Run it from the repository root.
"""

import argparse
import json
import shutil
from pathlib import Path

TRAIN_BYTES, VALID_BYTES = 400_000, 40_000


def service_rows(file: Path, limit: int) -> list[str]:
    """The first lines of `file` whose dialogue is between User and Assistant, up to `limit` bytes."""
    kept: list[str] = []
    size = 0
    for line in file.read_text(encoding="utf-8").splitlines(keepends=True):
        text = json.loads(line)["text"]
        if text.startswith(("User:", "Assistant:")) and size + len(line.encode()) <= limit:
            kept.append(line)
            size += len(line.encode())
    return kept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder written by prepare_data.py")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for name, limit in (("train", TRAIN_BYTES), ("valid", VALID_BYTES)):
        (args.out / f"{name}.jsonl").write_text("".join(service_rows(args.data / f"{name}.jsonl", limit)), encoding="utf-8")
    shutil.copyfile(args.data / "prompts.jsonl", args.out / "prompts.jsonl")


if __name__ == "__main__":
    main()
