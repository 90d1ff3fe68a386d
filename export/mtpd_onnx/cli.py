"""`mtpd-onnx`: export, inspect and decode on onnxruntime. MLX is never needed."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mtpd_mlx import __version__
from mtpd_mlx.speculative.frontend import add_generate_arguments, options_from, run_generate


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mtpd-onnx", description="Speculative decoding with MTP heads on onnxruntime.")
    parser.add_argument("--version", action="version", version=f"mtpd-onnx {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    generate = commands.add_parser("generate", help="generate text from an exported folder")
    generate.add_argument("folder", type=Path, help="folder written by `mtpd export`")
    add_runtime_arguments(generate)
    add_generate_arguments(generate)
    info = commands.add_parser("info", help="say what an exported folder is and whether its parts fit together")
    info.add_argument("folder", type=Path)
    info.add_argument("--verify", action="store_true", help="check the sha256 of every file, weights included")
    export = commands.add_parser("export", help="export a heads checkpoint (needs onnx, onnxscript and the base's folder)")
    if sys.argv[1:2] == ["export"]:
        import_export().add_export_arguments(export)
    return parser


def import_export() -> Any:
    """The export's packages are not needed for decoding, so they may be absent."""
    try:
        import mtpd_onnx.export as export
    except ModuleNotFoundError as error:
        raise ImportError(f'{error.name} is not installed; install with: pip install "mtpd-mlx[export]"') from error
    return export


def add_runtime_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--provider", choices=("auto", "cuda", "cpu"), default="auto", help="default: %(default)s")
    parser.add_argument("--num-threads", type=int, help="CPU threads (default: onnxruntime's choice)")
    parser.add_argument("--verify", action="store_true", help="check the sha256 of every file, weights included")


def main(argv: Sequence[str] | None = None) -> int:
    if argv is not None:
        sys.argv[1:] = list(argv)
    try:
        args = build_parser().parse_args()
        return {"generate": run_generation, "info": run_info, "export": run_export}[args.command](args)
    except KeyboardInterrupt:
        print("mtpd-onnx: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output went away: not an error of ours
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (ValueError, OSError, ImportError) as error:
        print(f"mtpd-onnx {sys.argv[1]}: error: {error}", file=sys.stderr)
        return 1


def run_generation(args: argparse.Namespace) -> int:
    from mtpd_mlx.speculative.tokenizer import Tokenizer
    from mtpd_onnx.open import open_folder

    options = options_from(args)
    backend = open_folder(
        args.folder,
        provider=args.provider,
        plain=options.plain,
        num_threads=args.num_threads,
        num_draft_tokens=options.num_draft_tokens,
        verify=args.verify,
    )
    return run_generate(backend, Tokenizer.from_folder(args.folder), options)


def run_info(args: argparse.Namespace) -> int:
    from mtpd_onnx.manifest import read_manifest

    manifest = read_manifest(args.folder, args.verify)
    shown: dict[str, Any] = {k: v for k, v in vars(manifest).items() if k not in ("io", "files")}
    shown["bytes"] = sum(entry["bytes"] for entry in manifest.files.values())
    print(json.dumps(shown, indent=2))
    return 0


def run_export(args: argparse.Namespace) -> int:
    return import_export().run_export(args)


if __name__ == "__main__":
    sys.exit(main())
