"""The identity of a base: heads are trained for one base and refuse another."""

import hashlib
import json
import struct
from pathlib import Path

SAMPLE_BYTES = 4096
SAMPLES = 16


def fingerprint_base(folder: Path) -> str:
    """sha256 over the sorted tensor names, dtypes, shapes and sampled contents of `folder`/model*.safetensors.

    Up to 16 evenly spaced blocks of 4 KiB of each tensor are read, so that a model of any size takes well under a second
    a thousand tensors. It tells two models apart (fine-tuned, quantised, re-sharded or not); it is not a checksum against
    corruption. Sharding does not change it. Raises ValueError (one line) on a truncated or malformed file.
    """
    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        raise ValueError(f"{folder}: no model*.safetensors in it")
    digests = dict(item for file in files for item in tensor_digests(file))
    total = hashlib.sha256()
    for name in sorted(digests):
        total.update(f"{name} {digests[name]}\n".encode())
    return f"sha256:{total.hexdigest()}"


def read_header(file: Path) -> tuple[dict, int]:
    """(tensor table, offset of the data) of a safetensors file; checks that the file holds every byte it declares."""
    size = file.stat().st_size
    with file.open("rb") as f:
        head = f.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else 1 << 62
        if length > min(size - 8, 100 << 20):
            raise ValueError(f"{file}: not a whole safetensors file (header cut short)")
        try:
            table = json.loads(f.read(length))
            table.pop("__metadata__", None)
            end = max((t["data_offsets"][1] for t in table.values()), default=0)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise ValueError(f"{file}: not a safetensors file (unreadable header)") from error
    if 8 + length + end != size:
        raise ValueError(f"{file}: truncated or damaged: {size} bytes, expected {8 + length + end}")
    return table, 8 + length


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
