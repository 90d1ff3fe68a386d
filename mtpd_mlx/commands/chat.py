"""mtpd chat."""

import argparse
import os
from pathlib import Path

from mtpd_mlx.commands.flags import add_model_arguments, decoding_options, open_from
from mtpd_mlx.options.sampling_flags import add_sampling_arguments, sampling_from


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    add = parser.add_argument
    add("--system-prompt", metavar="TEXT", help="system message for the chat template")
    add("-m", "--max-tokens", type=int, default=256, metavar="N", help="per answer (default: %(default)s)")
    add("--num-draft-tokens", type=int, metavar="K", help="drafts per round (default: as tuned here, or all heads)")
    add("--show-drafts", action="store_true", help="accepted draft tokens in green")
    add("--plain", action="store_true", help="ordinary decoding, one token per pass")
    add("--prompt-cache-file", type=Path, metavar="FILE", help="go on with this cache where it fits; saved at the end")
    add_sampling_arguments(parser)


def run(args: argparse.Namespace) -> int:
    from mtpd_mlx.decoding.prompt_cache import load_cache, save_cache
    from mtpd_mlx.text.chat import run_chat
    from mtpd_mlx.text.tokenizer import Tokenizer

    if args.max_tokens < 1:
        raise ValueError(f"--max-tokens: got {args.max_tokens}, expected at least 1")
    if args.prompt_cache_file is not None:
        check_cache_file(args.prompt_cache_file, decoding_options(args).kv_bits)
    backend, base = open_from(args, args.plain, args.num_draft_tokens, sampling_from(args))
    tokenizer, file = Tokenizer.from_folder(base.path), args.prompt_cache_file
    cached = load_cache(backend, file) if file is not None and file.is_file() else []
    status = run_chat(backend, tokenizer, args.max_tokens, args.system_prompt, args.show_drafts, cached=cached)
    if file is not None and backend.length:
        save_cache(backend, file)
    return status


def check_cache_file(file: Path, kv_bits: int | None) -> None:
    """ValueError, before a word is said, where the cache could not be saved at the end."""
    folder = file.parent
    if not folder.is_dir():
        raise ValueError(f"--prompt-cache-file: no folder {folder}")
    if file.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise ValueError(f"--prompt-cache-file: cannot write {file}")
    if kv_bits is not None:
        raise ValueError("--prompt-cache-file: a quantised cache cannot be saved; leave --kv-bits out")
