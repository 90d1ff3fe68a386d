"""`main`: the command line of `mtpd`. Each subcommand is a module of mtpd_mlx.commands, imported on use.
Called by the console script `mtpd`."""

import sys
from collections.abc import Sequence

from mtpd_mlx.options import command_line
from mtpd_mlx.text.messages import messages_on_stderr

GROUPS = {
    "Look before you start": {
        "inspect": "say what a model, a checkpoint or a folder is, and what it needs",
        "info": "the same of a hub id, before its weights are downloaded",
        "probe": "measure what verifying and drafting cost here, and what acceptance speculation needs",
        "doctor": "report device, versions, BLAS, compiler and memory, and what to fix",
        "demo": "a real model and a bundled one: train, extend, export, decode, report",
    },
    "Train heads": {
        "train": "train MTP heads for a model (or model and heads together)",
        "distill-data": "write a base's own continuations of prompts as training data",
        "cache": "run a frozen base once over data and keep what training heads needs of it",
        "extend": "extend trained heads by looping: m heads initialise the next m",
        "refit": "adapt heads to a fine-tuned or quantised base; never saves worse ones",
    },
    "Decode": {
        "generate": "generate text with speculative decoding",
        "chat": "chat in the terminal, with accepted drafts in colour",
        "serve": "answer requests over HTTP, as OpenAI's API does; with a page to chat on",
    },
    "Measure": {
        "eval": "measure acceptance (CAR, AR, tau) on prompts",
        "bench": "time plain mlx_lm, its own speculative decoding and ours on the same prompts",
        "tune": "find and store the fastest number of drafts for this machine",
        "verify": "check that speculative text is that of plain decoding",
        "parity": "compare MLX and ONNX decoding token by token",
    },
    "Exchange": {
        "export": "export a checkpoint to ONNX for mtpd-onnx",
        "import-gguf": "make a model folder of a GGUF file (llama.cpp); Q4_0, Q4_1 and Q8_0 weights keep their integers",
        "import-heads": "read the MTP heads that a model ships into a heads checkpoint",
        "export-heads": "write heads into a model folder in the layout that servers read",
        "pull": "download a model, heads or an exported folder from the hub",
        "push": "upload heads or an exported folder with a model card",
    },
}
COMMANDS = {name: summary for group in GROUPS.values() for name, summary in group.items()}


def main(argv: Sequence[str] | None = None) -> int:
    program = command_line.Program(
        name="mtpd",
        description="multi-token-prediction heads on MLX: the text a model writes anyway, faster",
        package="mtpd_mlx.commands",
        groups=GROUPS,
        messages=messages_on_stderr,
        fault=fault,
    )
    return command_line.main(program, argv)


def fault(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


if __name__ == "__main__":
    sys.exit(main())
