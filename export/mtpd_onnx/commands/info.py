"""mtpd-onnx info."""

import argparse
import json
from pathlib import Path
from typing import Any


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="folder written by `mtpd export`")
    parser.add_argument("--verify", action="store_true", help="check the sha256 of every file, weights included")


def run(args: argparse.Namespace) -> int:
    from mtpd_onnx.manifest import read_manifest

    manifest = read_manifest(args.folder, args.verify)
    shown: dict[str, Any] = {k: v for k, v in vars(manifest).items() if k not in ("io", "files")}
    shown["bytes"] = sum(entry["bytes"] for entry in manifest.files.values())
    print(json.dumps(shown, indent=2))
    return 0
