"""mtpd generate."""

import argparse

from mtpd_mlx.commands.flags import add_model_arguments, open_from
from mtpd_mlx.options.sampling_flags import add_sampling_arguments, sampling_from
from mtpd_mlx.text.generate import add_generate_arguments, options_from, run_generate


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    add_generate_arguments(parser, drafts="as tuned here, or all heads")
    add_sampling_arguments(parser)


def run(args: argparse.Namespace) -> int:
    from mtpd_mlx.text.tokenizer import Tokenizer

    options, sampling = options_from(args), sampling_from(args)
    backend, base = open_from(args, options.plain, options.num_draft_tokens, sampling)
    return run_generate(backend, Tokenizer.from_folder(base.path), options)
