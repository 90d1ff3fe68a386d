"""mtpd-onnx generate."""

import argparse

from mtpd_mlx.speculative.frontend import add_generate_arguments, options_from, run_generate
from mtpd_mlx.speculative.sampling_flags import add_sampling_arguments, sampling_from
from mtpd_onnx.runtime_flags import add_runtime_arguments, runtime_options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_runtime_arguments(parser)
    add_generate_arguments(parser)
    add_sampling_arguments(parser)


def run(args: argparse.Namespace) -> int:
    from mtpd_mlx.speculative.tokenizer import Tokenizer
    from mtpd_onnx.open import open_folder

    options = options_from(args)
    backend = open_folder(
        args.folder,
        plain=options.plain or options.num_draft_tokens == 0,
        num_draft_tokens=options.num_draft_tokens or None,
        sampling=sampling_from(args),
        **runtime_options(args),
    )
    return run_generate(backend, Tokenizer.from_folder(args.folder), options)
