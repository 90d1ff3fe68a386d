"""The identity of a base: heads are trained for one base and refuse another."""

import hashlib
import json
import math
import operator
import struct
from pathlib import Path
from typing import Any

from mtpd_mlx.families.wrapped import text_config, text_name
from mtpd_mlx.mtp_formats.names import is_shipped

SAMPLE_BYTES = 4096
SAMPLES = 16
MAX_HEADER_BYTES, MAX_CONFIG_BYTES = 100 << 20, 8 << 20
ITEM_BYTES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}
ITEM_BYTES |= {"I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1}


def fingerprint_base(folder: Path) -> str:
    """sha256 over the sorted tensor names, dtypes, shapes and sampled contents of `folder`/model*.safetensors.

    Up to 16 evenly spaced blocks of 4 KiB of each tensor are read, so that a model of any size takes well under a second
    a thousand tensors. It tells two models apart (fine-tuned, quantised, re-sharded or not); it is not a checksum against
    corruption. Sharding does not change it, nor do MTP heads that the checkpoint ships: they are no part of the base. Raises
    ValueError (one line) on a truncated or malformed file.
    """
    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        raise ValueError(f"{folder}: no model*.safetensors in it")
    digests = dict(item for file in files for item in tensor_digests(file))
    total, layers = hashlib.sha256(), _layer_count(folder)
    for name in sorted(digests):
        if layers is not None and is_shipped(text_name(name) or name, layers):
            continue
        total.update(f"{name} {digests[name]}\n".encode())
    return f"sha256:{total.hexdigest()}"


def _layer_count(folder: Path) -> int | None:
    """num_hidden_layers of `folder`/config.json; None where nothing can be read: who builds the model says what is wrong."""
    file = folder / "config.json"
    try:
        config = json.loads(file.read_bytes()) if file.stat().st_size <= MAX_CONFIG_BYTES else None
    except (OSError, ValueError, RecursionError):
        return None
    count = text_config(config).get("num_hidden_layers") if isinstance(config, dict) else None
    return count if type(count) is int else None


def read_header(file: Path) -> tuple[dict, int]:
    """(tensor table, offset of the data) of a safetensors file; checks that the file holds every byte it declares, that every
    tensor has the bytes of its shape and that they follow one another. ValueError in one line."""
    size = file.stat().st_size
    with file.open("rb") as f:
        head = f.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else 1 << 62
        if length > min(size - 8, MAX_HEADER_BYTES):
            raise ValueError(f"{file}: not a whole safetensors file (header cut short)")
        try:
            table = json.loads(f.read(length))
            table.pop("__metadata__", None)
            places = [(*(operator.index(n) for n in entry["data_offsets"]), name) for name, entry in table.items()]
            end = _check_places(sorted(places), table, file)
        except Damaged as error:
            raise ValueError(str(error)) from None
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
            raise ValueError(f"{file}: not a safetensors file (unreadable header)") from error
    if 8 + length + end != size:
        raise ValueError(f"{file}: truncated or damaged: {size} bytes, expected {8 + length + end}")
    return table, 8 + length


class Damaged(Exception):
    """A tensor table that contradicts itself."""


def _check_places(places: list[Any], table: dict, file: Path) -> int:
    """Where the data ends."""
    at = 0
    for begin, stop, name in places:
        dtype, shape = table[name]["dtype"], table[name]["shape"]
        if not isinstance(dtype, str):
            raise Damaged(f"{file}: {name!r}: dtype: got {dtype!r}, expected text")
        if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape):
            raise Damaged(f"{file}: {name!r}: shape: got {str(shape)[:60]}, expected a list of sizes")
        width = ITEM_BYTES.get(dtype)
        if width is not None and stop - begin != width * math.prod(shape):
            raise Damaged(
                f"{file}: {name!r}: {stop - begin} bytes, expected {width * math.prod(shape)} ({dtype}, shape {shape})"
            )
        if begin != at or stop < begin:
            raise Damaged(f"{file}: {name!r}: data at {begin}..{stop}, expected where the last tensor ends, at {at}")
        at = stop
    return at


def tensor_digests(file: Path) -> list[tuple[str, str]]:
    """(name, digest of dtype, shape and sampled contents) of every tensor of a safetensors file."""
    table, start = read_header(file)
    digests = []
    with file.open("rb") as f:
        for name, tensor in table.items():
            digest = hashlib.sha256(f"{tensor['dtype']} {tensor['shape']} ".encode())
            begin, end = tensor["data_offsets"]
            if end - begin <= SAMPLES * SAMPLE_BYTES:
                f.seek(start + begin)
                digest.update(f.read(end - begin))
            else:
                for i in range(SAMPLES):
                    f.seek(start + begin + (end - begin - SAMPLE_BYTES) * i // (SAMPLES - 1))
                    digest.update(f.read(SAMPLE_BYTES))
            digests.append((name, digest.hexdigest()))
    return digests
