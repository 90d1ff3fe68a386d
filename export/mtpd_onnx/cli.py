"""`mtpd-onnx`: export, inspect and decode on onnxruntime. MLX is never needed. One module of mtpd_onnx.commands each."""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any

from mtpd_mlx import __version__
from mtpd_mlx.text.messages import messages_on_stderr
from mtpd_onnx.errors import first_line

COMMANDS = {
    "generate": "generate text from an exported folder",
    "chat": "chat with an exported model",
    "bench": "time plain and speculative decoding (and onnxruntime-genai) side by side",
    "verify": "show that speculative decoding changes nothing: greedy identity and the sampling test",
    "info": "say what an exported folder is and whether its parts fit together",
    "export": "export a heads checkpoint (needs onnx, onnxscript and the base's folder)",
}


def import_command(name: str) -> Any:
    try:
        return importlib.import_module(f"mtpd_onnx.commands.{name}")
    except ModuleNotFoundError as error:
        if name != "export":
            raise
        raise ImportError(f'{error.name} is not installed; install with: pip install -e ".[export]"') from error


def main(argv: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog="mtpd-onnx", description="Speculative decoding with MTP heads on onnxruntime.")
    parser.add_argument("--version", action="version", version=f"mtpd-onnx {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    parsers = {
        name: subparsers.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
        for name, summary in COMMANDS.items()
    }
    try:
        if arguments and arguments[0] in COMMANDS:  # only the chosen command is imported
            command = import_command(arguments[0])
            command.add_arguments(parsers[arguments[0]])
        args = parser.parse_args(arguments)  # exits by itself where there is no command, or an unknown one
        with messages_on_stderr():
            return command.run(args)
    except KeyboardInterrupt:
        print("mtpd-onnx: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output went away: not an error of ours
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (ValueError, OSError, ImportError) as error:
        print(f"mtpd-onnx {arguments[0]}: error: {error}", file=sys.stderr)
        return 1
    except (RuntimeError, MemoryError) as error:  # of onnx, numpy or the system
        print(f"mtpd-onnx {arguments[0]}: error: {first_line(error)}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
