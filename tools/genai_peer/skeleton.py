"""`make_skeleton`: a genai folder without its weights, small enough to carry, filled again elsewhere.
Called by genai_peer/__main__.py and fill.py."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from tools.genai_peer import rotary
from tools.genai_peer.names import source_of

LIST_NAME, KEPT_NAME = "skeleton.json", "skeleton.npz"
DTYPES = {1: "<f4", 10: "<f2", 7: "<i8", 6: "<i4", 9: "|b1"}  # onnx.TensorProto.DataType
KEPT_AT_MOST = 1 << 20  # bytes of one tensor that no weight makes


def make_skeleton(folder: Path, model: Path, out: Path) -> int:
    """Writes the skeleton of `folder`, which was built from `model`; returns its bytes. ValueError in one line."""
    if not (folder / "genai_config.json").is_file():
        raise ValueError(f"{folder}: not a genai folder (no genai_config.json)")
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out}: exists already")
    graph_name = json.loads((folder / "genai_config.json").read_text())["model"]["decoder"]["filename"]
    config = json.loads((model / "config.json").read_text())
    theta = float(config.get("rope_theta") or (config.get("rope_parameters") or {}).get("rope_theta") or 1e4)
    entries = read_initializers(folder / graph_name)
    data = {str(entry["file"]) for entry in entries}
    if len(data) != 1:
        raise ValueError(f"{folder / graph_name}: got {len(data)} weight files, expected 1")
    data_name = data.pop()
    kept, digests = keep(folder / data_name, entries, theta)
    out.mkdir(parents=True, exist_ok=True)
    for file in sorted(folder.iterdir()):
        if file.is_file() and file.name != data_name:
            shutil.copyfile(file, out / file.name)
    np.savez_compressed(out / KEPT_NAME, **kept)
    values = {
        "data": data_name,
        "bytes": (folder / data_name).stat().st_size,
        "rope_theta": theta,
        "rotary_sha256": digests,
        "initializers": entries,
    }
    (out / LIST_NAME).write_text(json.dumps(values) + "\n")
    return sum(file.stat().st_size for file in out.iterdir())


def read_initializers(graph: Path) -> list[dict[str, Any]]:
    """Name, numpy dtype, shape, offset and file of every initializer that lies in the weights file."""
    try:
        import onnx
    except ModuleNotFoundError as error:
        raise ImportError("onnx is not installed; install it with: pip install onnx") from error
    entries = []
    for tensor in onnx.load(str(graph), load_external_data=False).graph.initializer:
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        if tensor.data_type not in DTYPES:
            kind = onnx.TensorProto.DataType.Name(tensor.data_type)
            raise ValueError(f"{graph}: {tensor.name} is {kind}; only fp32 and fp16 folders have skeletons")
        place = {item.key: item.value for item in tensor.external_data}
        entry = {"name": tensor.name, "dtype": DTYPES[tensor.data_type], "shape": list(tensor.dims)}
        entries.append(entry | {"offset": int(place.get("offset", 0)), "file": place["location"]})
    return entries


def keep(data: Path, entries: list[dict[str, Any]], theta: float) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """What no weight makes: rotary tables (as differences) with their digests, and small constants as they are."""
    kept, digests = {}, {}
    for entry in entries:
        name, shape = entry["name"], tuple(entry["shape"])
        if source_of(name, ()) is not None:
            continue
        dtype = np.dtype(entry["dtype"])
        table = np.fromfile(data, dtype=dtype, offset=entry["offset"], count=int(np.prod(shape))).reshape(shape)
        if name in rotary.FUNCTIONS:
            digests[name] = rotary.digest(table)
            table = rotary.difference(table, rotary.predict(name, shape, dtype, theta))
        elif table.nbytes > KEPT_AT_MOST:
            raise ValueError(f"{data}: no Hugging Face weight is known for {name} ({dtype}, {shape})")
        kept[name] = table
    return kept, digests
