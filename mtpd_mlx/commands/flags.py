"""What MLX commands have in common: the flags of base and heads, and opening them as the flags say."""

import argparse
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from mtpd_mlx.checkpoints.adapter_format import ADAPTER_HELP
from mtpd_mlx.options.decode import DecodingConfig
from mtpd_mlx.options.schema import add_arguments as add_options
from mtpd_mlx.options.schema import build

logger = logging.getLogger(__name__)


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


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", help="heads checkpoint (or, for plain decoding, a base model)")
    parser.add_argument("--model", help="base to use instead of the recorded one (same weights)")
    add_base_flags(parser)
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


def as_tuned(args: argparse.Namespace, base: Any, num_draft_tokens: int | None) -> tuple[DecodingConfig, int | None]:
    """(options, number of drafts): where neither is asked for, what `mtpd tune` stored for this machine."""
    from mtpd_mlx.checkpoints.format import CONFIG_NAME
    from mtpd_mlx.decoding.tuning.machine import machine_key
    from mtpd_mlx.decoding.tuning.stored import read_tuned
    from mtpd_mlx.hub.pull import resolve_folder

    options, folder = decoding_options(args), resolve_folder(args.checkpoint)
    if num_draft_tokens is not None or not (folder / CONFIG_NAME).is_file():
        return options, num_draft_tokens
    tuned = read_tuned(folder, machine_key(base.dtype))
    if tuned is None:
        return options, None
    if not tuned.num_draft_tokens:
        logger.info("tuned: plain decoding is fastest here (--num-draft-tokens K overrides)")
    elif options.plan == "auto" and not options.exact and options.kv_bits is None:
        options = replace(options, plan=tuned.plan)
    return options, tuned.num_draft_tokens


def open_from(args: argparse.Namespace, plain: bool, num_draft_tokens: int | None, sampling: Any) -> tuple[Any, Any]:
    """(decoder, base) as the arguments say."""
    from mtpd_mlx.decoding.open import open_decoder
    from mtpd_mlx.text.tokenizer import Tokenizer

    base, heads = load_model(args, plain)
    options, drafts = (decoding_options(args), 0) if plain else as_tuned(args, base, num_draft_tokens)
    special = xtc_special_tokens(Tokenizer.from_folder(base.path)) if sampling.xtc_probability else ()
    heads = None if drafts == 0 else heads
    return open_decoder(base, heads, options, drafts, sampling=sampling, xtc_special_tokens=special), base


def xtc_special_tokens(tokenizer: Any) -> tuple[int, ...]:
    """What XTC never leaves out, as in mlx_lm.generate: line break and end of text."""
    return (*tokenizer.encode("\n", False), *sorted(tokenizer.eos_token_ids))


def load_model(args: argparse.Namespace, plain: bool = False) -> tuple[Any, Any]:
    """(base, heads or None) of the arguments; heads in the base's type."""
    from mtpd_mlx.checkpoints.format import CONFIG_NAME
    from mtpd_mlx.hub.pull import resolve_folder
    from mtpd_mlx.model.base import load_base
    from mtpd_mlx.model.load_save import load_checkpoint
    from mtpd_mlx.model.runtime import mx, on_cpu

    dequantize = on_cpu() if args.dequantize is None else args.dequantize
    folder = resolve_folder(args.checkpoint)
    if plain and not (folder / CONFIG_NAME).is_file():
        base, heads = load_base(args.checkpoint, dequantize=dequantize, adapter=args.adapter_path), None
    else:
        base, heads, _ = load_checkpoint(folder, args.model, dequantize, **base_options(args))
    if args.dtype is not None:
        base.model.set_dtype(getattr(mx, args.dtype))
    if heads is not None:
        heads.set_dtype(base.dtype)
        mx.eval(heads.parameters())
    mx.eval(base.model.parameters())
    return base, heads
