"""mtpd-onnx generate."""

import argparse

from mtpd_mlx.options.sampling_flags import add_sampling_arguments, sampling_from
from mtpd_mlx.text.generate import add_generate_arguments, options_from, run_generate
from mtpd_onnx.commands.runtime_flags import BUILT_IN, add_runtime_arguments, runtime_options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_runtime_arguments(parser)
    add_generate_arguments(parser)
    help_ = "decode B of --prompts at once (greedy, without CUDA graphs; needs onnxruntime 1.32 or later)"
    parser.add_argument("--batch-size", type=int, default=1, metavar="B", help=help_)
    add_sampling_arguments(parser, BUILT_IN)


def run(args: argparse.Namespace) -> int:
    from mtpd_mlx.text.tokenizer import Tokenizer
    from mtpd_onnx.runtime.open import open_folder

    options, sampling = options_from(args), sampling_from(args)
    if args.batch_size != 1:
        from mtpd_onnx.runtime.batched_generate import run_batches

        if options.plain or options.num_draft_tokens is not None or not sampling.greedy:
            raise ValueError("--batch-size: batches are decoded greedily with all heads, without --plain or --num-draft-tokens")
        runtime = {k: v for k, v in runtime_options(args).items() if k != "captured"}  # batches never are
        return run_batches(args.folder, args.batch_size, options, runtime)
    backend = open_folder(
        args.folder,
        plain=options.plain or options.num_draft_tokens == 0,
        num_draft_tokens=options.num_draft_tokens or None,
        sampling=sampling,
        **runtime_options(args),
    )
    return run_generate(backend, Tokenizer.from_folder(args.folder), options)
