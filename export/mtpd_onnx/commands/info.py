"""`mtpd-onnx info`: the manifest of a folder, and whether its parts fit together.
Called by mtpd_onnx/cli.py."""

import json
from typing import Any

from mtpd_mlx.options.runtime import FolderOptions

OPTIONS = (FolderOptions,)
EXAMPLES = ("mtpd-onnx info onnx --verify",)


def run(place: FolderOptions) -> int:
    from mtpd_onnx.manifest import read_manifest

    manifest = read_manifest(place.folder, place.verify)
    shown: dict[str, Any] = {k: v for k, v in vars(manifest).items() if k not in ("io", "files")}
    shown["bytes"] = sum(entry["bytes"] for entry in manifest.files.values())
    print(json.dumps(shown, indent=2))
    return 0
