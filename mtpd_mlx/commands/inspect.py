"""mtpd inspect: needs no MLX and reads no weights."""

import argparse
import json
from pathlib import Path
from typing import Any

from mtpd_mlx.inspection.memory import Plan


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="a model, heads checkpoint, exported folder, cache or adapter; or a hub id")
    parser.add_argument("--revision", help="of a hub id")
    parser.add_argument("--num-heads", type=int, default=Plan.num_heads, help="heads to plan memory for (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=Plan.batch_size, help="rows of a step (default: %(default)s)")
    parser.add_argument("--max-seq-length", type=int, default=Plan.tokens, help="tokens of a row (default: %(default)s)")
    parser.add_argument("--context", type=int, default=Plan.positions, help="positions to decode (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    from mtpd_mlx.hub.remote import HubView, is_hub_id
    from mtpd_mlx.inspection.describe import describe
    from mtpd_mlx.inspection.render import render
    from mtpd_mlx.inspection.view import LocalView

    plan = Plan(args.num_heads, args.batch_size, args.max_seq_length, args.context)
    for name, value in vars(plan).items():
        if value < 1:
            raise ValueError(f"{name}: got {value}, expected at least 1")
    folder = Path(args.name).expanduser()
    if not folder.is_dir() and not is_hub_id(args.name):
        raise ValueError(f"{args.name}: no such folder, and not a hub id of the form owner/name")
    view: Any = LocalView(folder) if folder.is_dir() else HubView(args.name, args.revision)
    found = describe(view, plan)
    print(json.dumps(found, indent=2) if args.json else render(found))
    return 0
