"""mtpd export-heads: needs no MLX."""

import argparse
from pathlib import Path

from mtpd_mlx.checkpoints.shipped.layouts import LAYOUTS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", help="heads checkpoint: a folder or a hub id")
    parser.add_argument("--out", type=Path, required=True, help="model folder to write")
    parser.add_argument("--model", help="the base, where it is not where the checkpoint says")
    parser.add_argument("--format", choices=list(LAYOUTS), default="nextn", help="names of the tensors (default: %(default)s)")
    parser.add_argument("--link", action="store_true", help="hard-link the base's weights instead of copying them")
    parser.add_argument("--copy-ends", action="store_true", help="repeat the base's ends per head, as DeepSeek-V3 does")
    parser.add_argument("--allow-base-mismatch", action="store_true", help="write the heads into another base than their own")


def run(args: argparse.Namespace) -> int:
    from mtpd_mlx.checkpoints.format import read_config
    from mtpd_mlx.checkpoints.shipped.write import export_heads
    from mtpd_mlx.hub.pull import resolve_folder, resolve_model

    checkpoint = resolve_folder(args.checkpoint)
    base = resolve_model(args.model or read_config(checkpoint).base.locate(checkpoint))
    written = export_heads(
        checkpoint,
        base,
        args.out,
        args.format,
        link=args.link,
        copy_ends=args.copy_ends,
        allow_mismatch=args.allow_base_mismatch,
    )
    replaced = f", in place of the {written.replaced} that the base ships" if written.replaced else ""
    print(f"{args.out}: model with MTP heads ({args.format}), {written.bytes / 1e6:.1f} MB of them{replaced}")
    if written.draft_vocab is not None:
        print(f"the heads' draft vocabulary of {written.draft_vocab} tokens has no place in this layout: it is left out")
    return 0
