"""What the MLX commands that decode have in common: arguments, and opening base and heads."""

import argparse
from pathlib import Path
from typing import Any

from mtpd_mlx.decoding.options import DecodingConfig
from mtpd_mlx.schema import add_arguments as add_options
from mtpd_mlx.schema import build


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", help="heads checkpoint (or, for plain decoding, a base model)")
    parser.add_argument("--model", help="base to use instead of the recorded one (same weights)")
    parser.add_argument(
        "--dequantize",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="hold a quantised base in floating point (default: on CPU only, where it is faster)",
    )
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], help="cast weights (default: as they are)")
    add_options(parser, DecodingConfig)


def decoding_options(args: argparse.Namespace) -> DecodingConfig:
    return build((DecodingConfig,), {}, vars(args))[0]


def load_model(args: argparse.Namespace, plain: bool = False) -> tuple[Any, Any]:
    """(base, heads or None) of the arguments; heads in the base's type."""
    from mtpd_mlx.base import load_base
    from mtpd_mlx.checkpoint import load_checkpoint
    from mtpd_mlx.checkpoint_format import CONFIG_NAME
    from mtpd_mlx.mlx_runtime import mx, on_cpu

    dequantize = on_cpu() if args.dequantize is None else args.dequantize
    folder = Path(args.checkpoint)
    if plain and not (folder / CONFIG_NAME).is_file():
        base, heads = load_base(args.checkpoint, dequantize=dequantize), None
    else:
        base, heads, _ = load_checkpoint(folder, args.model, dequantize=dequantize)
    if args.dtype is not None:
        base.model.set_dtype(getattr(mx, args.dtype))
    if heads is not None:
        heads.set_dtype(base.dtype)
        mx.eval(heads.parameters())
    mx.eval(base.model.parameters())
    return base, heads
