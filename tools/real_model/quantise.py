"""Heads as they ship: matrices in 8 bits (MLX affine, groups of 64), all else in bfloat16.

python -m tools.real_model.quantise HEADS --model BASE --named HuggingFaceTB/SmolLM2-135M-Instruct --out OUT
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

BITS = 8


def quantise(checkpoint: Path, model: str, named: str | None, out: Path) -> None:
    """`named`: what the checkpoint says its base is, in place of the folder `model`."""
    from mtpd_mlx.model.load_save import load_checkpoint, save_heads
    from mtpd_mlx.model.runtime import mx

    _, heads, config = load_checkpoint(checkpoint, model, ends_only=True)
    heads.set_dtype(mx.bfloat16)
    base = config.base if named is None else replace(config.base, id=named)
    save_heads(out, heads, replace(config, base=base), bits=BITS)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--model", required=True, help="the base's folder")
    parser.add_argument("--named", help="the base's name in the checkpoint (default: as it is)")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    try:
        quantise(args.checkpoint, args.model, args.named, args.out)
    except (ValueError, OSError) as error:
        print(f"quantise: error: {error}", file=sys.stderr)
        return 1
    print(f"{args.checkpoint}: {BITS} bits -> {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
