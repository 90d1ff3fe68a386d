"""`fingerprint_base`: the identity of a base. Heads are trained for one base and refuse another.
Called by whoever writes heads (checkpoints, model/load_save.py, tools) and checks them."""

import hashlib
from pathlib import Path

from mtpd_mlx.checkpoints.shipped.layouts import is_shipped
from mtpd_mlx.families.multimodal import text_config, text_name
from mtpd_mlx.files.json_object import read_json_object
from mtpd_mlx.files.safetensors import RawTensors

SAMPLE_BYTES = 4096
SAMPLES = 16


def fingerprint_base(folder: Path) -> str:
    """sha256 over the sorted tensor names, dtypes, shapes and sampled contents of the weights in `folder`.

    Up to 16 evenly spaced blocks of 4 KiB of each tensor are read, so that a model of any size takes well under a second
    a thousand tensors. It tells two models apart (fine-tuned, quantised, re-sharded or not); it is not a checksum against
    corruption. Sharding does not change it, nor do MTP heads that the checkpoint ships: they are no part of the base. Raises
    ValueError (one line) on a truncated or malformed file.
    """
    digests = tensor_digests(RawTensors.of_model(folder))
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


def tensor_digests(tensors: RawTensors) -> dict[str, str]:
    """Name -> digest of dtype, shape and sampled contents."""
    digests = {}
    for name, entry in tensors.table.items():
        digest = hashlib.sha256(f"{entry['dtype']} {entry['shape']} ".encode())
        data = tensors.data(name)
        if data.size <= SAMPLES * SAMPLE_BYTES:
            digest.update(data.data)
        else:
            for i in range(SAMPLES):
                at = (data.size - SAMPLE_BYTES) * i // (SAMPLES - 1)
                digest.update(data[at : at + SAMPLE_BYTES].data)
        digests[name] = digest.hexdigest()
    return digests
