"""mtpd import-heads: needs no MLX."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="model that ships MTP heads: a folder or a hub id")
    parser.add_argument("--revision", help="of a hub id")
    parser.add_argument("--out", type=Path, required=True, help="heads checkpoint to write")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing checkpoint")


def run(args: argparse.Namespace) -> int:
    from mtpd_mlx.checkpoints.shipped.read import import_heads
    from mtpd_mlx.files.hub_ids import is_hub_id, split_revision
    from mtpd_mlx.hub.pull import resolve_model

    model, named = resolve_model(args.model, args.revision), args.model
    if args.revision and is_hub_id(named):
        named = "@".join(part for part in split_revision(named, args.revision) if part)
    found = import_heads(model, args.out, named, args.overwrite)
    print(f"{args.out}: {found['heads']} heads imported ({found['format']})")
    return 0
