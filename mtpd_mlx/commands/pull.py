"""mtpd pull: needs no MLX."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="hub id, owner/name or owner/name@revision")
    parser.add_argument("--revision", help="branch, tag or commit (default: main)")
    parser.add_argument("--out", type=Path, help="folder to write (default: the hub's local cache)")


def run(args: argparse.Namespace) -> int:
    from mtpd_mlx.files.hub_ids import is_hub_id
    from mtpd_mlx.hub.pull import pull
    from mtpd_mlx.inspection.describe import describe
    from mtpd_mlx.inspection.folder_view import LocalView
    from mtpd_mlx.inspection.render import render

    if not is_hub_id(args.name):
        raise ValueError(f"{args.name}: not a hub id of the form owner/name")
    if args.out is not None and args.out.exists() and any(args.out.iterdir()) and not (args.out / ".cache").is_dir():
        raise ValueError(f"--out {args.out}: is not empty, and not an interrupted pull; use another folder")
    folder = pull(args.name, args.revision, args.out)
    print(render(describe(LocalView(folder))))
    return 0
