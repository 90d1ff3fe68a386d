"""`mtpd`: the command line of the MLX side. Each subcommand is a module of mtpd_mlx.commands, imported when it is used."""

import argparse
import importlib
import sys
from collections.abc import Sequence

from mtpd_mlx import __version__

COMMANDS = {
    "train": "train MTP heads for a model (or model and heads together)",
    "extend": "extend trained heads by looping: m heads initialise the next m",
    "eval": "measure acceptance (CAR, AR, tau) on prompts",
    "generate": "generate text with speculative decoding",
    "export": "export a checkpoint to ONNX for mtpd-onnx",
    "parity": "compare MLX and ONNX decoding token by token",
    "demo": "train, extend, export, decode and report on the bundled small model",
}


def main(argv: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog="mtpd", description="Self-distilled multi-token-prediction heads on MLX.")
    parser.add_argument("--version", action="version", version=f"mtpd {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, summary in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
        if arguments[:1] == [name]:
            command = importlib.import_module(f"mtpd_mlx.commands.{name}")
            command.add_arguments(subparser)
    args = parser.parse_args(arguments)
    try:
        return command.run(args)
    except KeyboardInterrupt:
        print("mtpd: interrupted", file=sys.stderr)
        return 130
    except (ValueError, OSError, ImportError) as error:
        print(f"mtpd {args.command}: error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
