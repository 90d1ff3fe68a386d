"""mtpd import-heads: needs no MLX."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="model that ships MTP heads: a folder or a hub id")
    parser.add_argument("--revision", help="of a hub id")
    parser.add_argument("--out", type=Path, required=True, help="heads checkpoint to write")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing checkpoint")


def run(args: argparse.Namespace) -> int:
    from mtpd_mlx.hub.pull import resolve_model
    from mtpd_mlx.mtp_formats.importing import import_heads

    found = import_heads(resolve_model(args.model, args.revision), args.out, args.model, args.overwrite)
    print(f"{args.out}: {found['heads']} heads imported ({found['format']})")
    return 0
