"""`mtpd`: the command line of the MLX side. Each subcommand is a module of mtpd_mlx.commands, imported when it is used."""

import argparse
import importlib
import os
import sys
import traceback
from collections.abc import Sequence

from mtpd_mlx import __version__
from mtpd_mlx.text.messages import messages_on_stderr

TRACEBACK = "MTPD_TRACEBACK"  # environment variable: 1 prints tracebacks of errors that are told in one line
COMMANDS = {
    "cache": "run a frozen base once over data and keep what training heads needs of it",
    "train": "train MTP heads for a model (or model and heads together)",
    "extend": "extend trained heads by looping: m heads initialise the next m",
    "import-heads": "read the MTP heads that a model ships into a heads checkpoint",
    "export-heads": "write heads into a model folder in the layout that servers read",
    "inspect": "say what a model, a checkpoint or a folder is, and what it needs",
    "info": "the same of a hub id, before its weights are downloaded",
    "pull": "download a model, heads or an exported folder from the hub",
    "push": "upload heads or an exported folder with a model card",
    "refit": "adapt heads to a fine-tuned or quantised base; never saves worse ones",
    "eval": "measure acceptance (CAR, AR, tau) on prompts",
    "distill-data": "write a base's own continuations of prompts as training data",
    "generate": "generate text with speculative decoding",
    "chat": "chat in the terminal, with accepted drafts in colour",
    "probe": "measure what verifying and drafting cost here, and what acceptance speculation needs",
    "tune": "find and store the fastest number of drafts for this machine",
    "verify": "check that speculative text is that of plain decoding",
    "doctor": "report device, versions, BLAS, compiler and memory, and what to fix",
    "bench": "time plain mlx_lm, its own speculative decoding and ours on the same prompts",
    "export": "export a checkpoint to ONNX for mtpd-onnx",
    "parity": "compare MLX and ONNX decoding token by token",
    "demo": "train, extend, export, decode and report on the bundled small model",
}


def main(argv: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog="mtpd", description="Self-distilled multi-token-prediction heads on MLX.")
    parser.add_argument("--version", action="version", version=f"mtpd {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    parsers = {
        name: subparsers.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
        for name, summary in COMMANDS.items()
    }
    try:
        if arguments and arguments[0] in COMMANDS:  # only the chosen command is imported
            command = importlib.import_module(f"mtpd_mlx.commands.{arguments[0].replace('-', '_')}")
            command.add_arguments(parsers[arguments[0]])
        args = parser.parse_args(arguments)  # exits by itself where there is no command, or an unknown one
        with messages_on_stderr():
            return command.run(args)
    except KeyboardInterrupt:
        print("mtpd: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output went away: not an error of ours
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (ValueError, OSError, ImportError) as error:
        return _fail(arguments[0], str(error))
    except (RuntimeError, MemoryError) as error:  # MLX's own faults (memory, devices, kernels) among them
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        return _fail(arguments[0], f"{first} ({TRACEBACK}=1 shows where)")


def _fail(command: str, message: str) -> int:
    """One line for the user; for developers, where it came from."""
    if os.environ.get(TRACEBACK, "0") not in ("", "0"):
        traceback.print_exc()
    print(f"mtpd {command}: error: {message}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
