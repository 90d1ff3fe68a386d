"""`main`: the command line of `mtpd`. Each subcommand is a module of mtpd_mlx.commands, imported on use.
Called by the console script `mtpd`."""

import sys
from collections.abc import Sequence

from mtpd_mlx.options import command_line
from mtpd_mlx.text.messages import messages_on_stderr

GROUPS = {
    "Look before you start": {
        "inspect": "show whether a model is supported, what a folder is, and the memory it needs",
        "info": "the same for a hub id, before its weights are downloaded",
        "probe": "measure whether drafts can pay on this machine; needs no heads",
        "doctor": "report device, versions, BLAS, compiler and memory, and what to fix",
        "demo": "show all of it in six minutes: train, extend, export, decode, report",
    },
    "Train heads": {
        "train": "train MTP heads for a model (or model and heads together)",
        "distill-data": "let the model write its own training data from prompts",
        "cache": "run the base once over data, to train heads without it in memory",
        "extend": "make 4 heads into 8 or 16: copy them, then train briefly",
        "refit": "adapt heads to a fine-tuned or quantised base; never saves worse ones",
    },
    "Decode": {
        "generate": "generate text with speculative decoding",
        "chat": "chat in the terminal, with accepted drafts in colour",
        "serve": "serve OpenAI's and Anthropic's APIs, and a page to chat on",
    },
    "Measure": {
        "eval": "measure how many drafts are accepted on prompts (CAR, AR, tau)",
        "bench": "time plain mlx_lm, its own speculative decoding and ours on the same prompts",
        "tune": "measure and store what rounds cost on this machine",
        "verify": "check that speculative text is that of plain decoding",
        "parity": "compare MLX and ONNX decoding token by token",
    },
    "Exchange": {
        "export": "export a checkpoint to ONNX for mtpd-onnx",
        "import-gguf": "make a model folder from a GGUF file of llama.cpp",
        "import-heads": "take the MTP heads that a model ships",
        "export-heads": "write heads in a layout that vLLM and others read",
        "pull": "download a model, heads or an exported folder from the hub",
        "push": "upload heads or an exported folder with a model card",
    },
}
COMMANDS = {name: summary for group in GROUPS.values() for name, summary in group.items()}


def main(argv: Sequence[str] | None = None) -> int:
    program = command_line.Program(
        name="mtpd",
        description="train multi-token-prediction heads and decode with them on MLX: the same text, faster",
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
