"""The identity of a base: heads are trained for one base and refuse another."""

import hashlib
from pathlib import Path

from mtpd_mlx.checkpoints.shipped.layouts import is_shipped
from mtpd_mlx.families.multimodal import text_config, text_name
from mtpd_mlx.files.json_object import read_json_object
from mtpd_mlx.files.safetensors import read_header

SAMPLE_BYTES = 4096
SAMPLES = 16


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
    try:
        count = text_config(read_json_object(folder / "config.json")).get("num_hidden_layers")
    except ValueError:
        return None
    return count if type(count) is int else None


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
