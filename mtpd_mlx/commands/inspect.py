"""mtpd inspect: needs no MLX and reads no weights."""

import argparse
import json

from mtpd_mlx.inspection.folder_view import View
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
    from mtpd_mlx.inspection.describe import describe
    from mtpd_mlx.inspection.render import render

    plan = Plan(args.num_heads, args.batch_size, args.max_seq_length, args.context)
    for name, value in vars(plan).items():
        if value < 1:
            raise ValueError(f"{name}: got {value}, expected at least 1")
    found = describe(view_of(args.name, args.revision), plan)
    print(json.dumps(found, indent=2) if args.json else render(found))
    return 0


def view_of(name: str, revision: str | None) -> View:
    from mtpd_mlx.hub.messages import HubError
    from mtpd_mlx.hub.pull import local_folder, no_such_folder
    from mtpd_mlx.hub.remote import look
    from mtpd_mlx.inspection.folder_view import LocalView

    if (folder := local_folder(name)) is not None:
        return LocalView(folder)
    try:
        return look(name, revision)
    except HubError as error:
        raise no_such_folder(error) from None
