"""`main`: the command line of `mtpd-onnx`, one module of mtpd_onnx.commands per subcommand. MLX is never needed.
Called by the console script `mtpd-onnx`."""

import sys
from collections.abc import Sequence

from mtpd_mlx.options import command_line
from mtpd_mlx.text.messages import messages_on_stderr
from mtpd_onnx.errors import first_line

GROUPS = {
    "Decode": {
        "generate": "generate text from an exported folder",
        "chat": "chat with an exported model",
        "serve": "serve OpenAI's and Anthropic's APIs, and a page to chat on",
    },
    "Measure": {
        "bench": "time plain and speculative decoding (and onnxruntime-genai) side by side",
        "verify": "check that speculative text is that of plain decoding",
    },
    "Folders": {
        "info": "show what an exported folder is, and whether its parts fit together",
        "export": "export a checkpoint to a folder (needs onnx, onnxscript and the base)",
    },
}
COMMANDS = {name: summary for group in GROUPS.values() for name, summary in group.items()}


def main(argv: Sequence[str] | None = None) -> int:
    program = command_line.Program(
        name="mtpd-onnx",
        description="speculative decoding with multi-token-prediction heads on onnxruntime, without MLX",
        package="mtpd_onnx.commands",
        groups=GROUPS,
        messages=messages_on_stderr,
        fault=first_line,
    )
    return command_line.main(program, argv)


if __name__ == "__main__":
    sys.exit(main())
