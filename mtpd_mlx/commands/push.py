"""mtpd push: needs no MLX."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="heads checkpoint or exported folder")
    parser.add_argument("repository", help="hub id to upload to, owner/name; log in first with `hf auth login`")
    parser.add_argument("--base-id", help="the base's hub id, where the checkpoint names a local folder")
    parser.add_argument("--license", help="licence of the heads, for the card (for example apache-2.0)")
    parser.add_argument("--private", action="store_true", help="make a private repository")
    parser.add_argument("--overwrite", action="store_true", help="write into a repository that holds files already")
    parser.add_argument("--dry-run", action="store_true", help="print the card and the files; upload nothing")


def run(args: argparse.Namespace) -> int:
    from mtpd_mlx.hub.push import CARD, prepare, push

    files = prepare(args.folder, args.repository, args.base_id, args.license)
    if args.dry_run:
        shown = files[CARD]
        assert isinstance(shown, bytes)
        print(shown.decode(), end="")
        print("files: " + ", ".join(files))
        return 0
    address = push(files, args.repository, args.private, args.overwrite)
    print(f"{len(files)} files -> {address}")
    return 0
