#!/usr/bin/env python3
"""Packs a joint checkpoint as it ships: 8-bit base in OUT/base, 8-bit heads in OUT/heads (they name ../base).

    python -m tools.demo_model.package_model --joint RUN --out OUT

Run it from the repository root.
"""

import argparse
import shutil
from dataclasses import replace
from pathlib import Path

from mtpd_mlx.checkpoints.fingerprint import fingerprint_base
from mtpd_mlx.checkpoints.format import BaseRef
from mtpd_mlx.model.base import load_base
from mtpd_mlx.model.load_save import load_heads, save_heads
from mtpd_mlx.text.tokenizer_files import copy_tokenizer

BITS = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--joint", type=Path, required=True, help="checkpoint folder of the joint run")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    from mlx_lm.convert import convert

    base_folder = args.out / "base"
    shutil.rmtree(base_folder, ignore_errors=True)
    args.out.mkdir(parents=True, exist_ok=True)
    convert(str(args.joint / "base"), mlx_path=str(base_folder), quantize=True, q_bits=BITS, q_group_size=64)
    for unneeded in ("README.md", "model.safetensors.index.json", "chat_template.jinja"):
        (base_folder / unneeded).unlink(missing_ok=True)
    copy_tokenizer(args.joint / "base", base_folder)
    base = load_base(str(base_folder), dequantize=True)
    heads, config = load_heads(args.joint, base)
    reference = BaseRef("../base", fingerprint_base(base_folder), base.config["model_type"], base.hidden_size, base.vocab_size)
    save_heads(args.out / "heads", heads, replace(config, base=reference), bits=BITS)
    for file in sorted(args.out.rglob("*.safetensors")):
        print(f"{file}: {file.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
