"""mtpd generate."""

import argparse
from pathlib import Path

from mtpd_mlx.commands.base_flags import add_base_flags, base_options
from mtpd_mlx.speculative.frontend import add_generate_arguments, options_from, run_generate


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", help="heads checkpoint (or, with --plain, a base model)")
    parser.add_argument("--model", help="base to use instead of the recorded one (same weights)")
    add_base_flags(parser)
    parser.add_argument(
        "--dequantize",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="hold a quantised base in floating point (default: on CPU only, where it is faster)",
    )
    add_generate_arguments(parser)


def run(args: argparse.Namespace) -> int:
    from mtpd_mlx.backend import MLXModel
    from mtpd_mlx.base import load_base
    from mtpd_mlx.checkpoint import load_for_decoding
    from mtpd_mlx.checkpoint_format import CONFIG_NAME
    from mtpd_mlx.mlx_runtime import on_cpu
    from mtpd_mlx.speculative.rounds import StepBackend
    from mtpd_mlx.speculative.tokenizer import Tokenizer

    options = options_from(args)
    dequantize = on_cpu() if args.dequantize is None else args.dequantize
    folder = Path(args.checkpoint)
    if options.plain and not (folder / CONFIG_NAME).is_file():
        base, heads = load_base(args.checkpoint, dequantize=dequantize, adapter=args.adapter_path), None
    else:
        base, heads, _ = load_for_decoding(folder, args.model, dequantize, **base_options(args))
    assert base.path is not None
    model = MLXModel(base, None if options.plain else heads, None if options.plain else options.num_draft_tokens)
    return run_generate(StepBackend(model), Tokenizer.from_folder(base.path), options)
