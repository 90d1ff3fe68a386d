"""Flags that say which base heads run on, for every command that loads a checkpoint."""

import argparse
from pathlib import Path
from typing import Any

from mtpd_mlx.checkpoints.adapter_format import ADAPTER_HELP


def add_base_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--adapter-path", type=Path, metavar="DIR", help=ADAPTER_HELP)
    parser.add_argument(
        "--allow-base-mismatch",
        action="store_true",
        help="use the heads with another base than their own (its text stays exact, acceptance may fall: see mtpd refit)",
    )


def base_options(args: argparse.Namespace) -> dict[str, Any]:
    """The keyword arguments of load_checkpoint."""
    return {"adapter": args.adapter_path, "allow_mismatch": args.allow_base_mismatch}
