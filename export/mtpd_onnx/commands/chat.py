"""mtpd-onnx chat."""

import argparse

from mtpd_mlx.options.sampling_flags import add_sampling_arguments, sampling_from
from mtpd_onnx.commands.runtime_flags import BUILT_IN, add_runtime_arguments, runtime_options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_runtime_arguments(parser)
    parser.add_argument("--system-prompt", metavar="TEXT", help="system message for the chat template")
    parser.add_argument("-m", "--max-tokens", type=int, default=256, metavar="N", help="per answer (default: %(default)s)")
    parser.add_argument("--show-drafts", action="store_true", help="accepted draft tokens in green")
    parser.add_argument("--plain", action="store_true", help="ordinary decoding, one token per pass")
    add_sampling_arguments(parser, BUILT_IN)


def run(args: argparse.Namespace) -> int:
    from mtpd_mlx.text.chat import run_chat
    from mtpd_mlx.text.tokenizer import Tokenizer
    from mtpd_onnx.runtime.open import open_folder

    if args.max_tokens < 1:
        raise ValueError(f"--max-tokens: got {args.max_tokens}, expected at least 1")
    sampling = sampling_from(args)
    backend = open_folder(args.folder, plain=args.plain, sampling=sampling, **runtime_options(args))
    return run_chat(backend, Tokenizer.from_folder(args.folder), args.max_tokens, args.system_prompt, args.show_drafts)
