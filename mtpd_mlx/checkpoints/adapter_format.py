"""`read_adapter`, `fingerprint_model`: mlx-lm adapter folders (adapter_config.json, adapters.safetensors) as files.
Called by model/adapters.py, the exporter and inspection."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtpd_mlx.checkpoints.fingerprint import fingerprint_base, tensor_digests
from mtpd_mlx.files.json_object import read_json_object
from mtpd_mlx.files.safetensors import RawTensors, read_header

CONFIG, WEIGHTS = "adapter_config.json", "adapters.safetensors"
MAX_CONFIG_BYTES = 1 << 20
KINDS = ("lora", "dora", "full")


@dataclass(frozen=True)
class Adapter:
    """`kind`: lora, dora or full; `settings`: what mlx-lm makes the layers from; `table`: the tensors of the weights file."""

    folder: Path
    kind: str
    settings: dict[str, Any]
    table: dict[str, Any]

    @property
    def scale(self) -> float:
        return float(self.settings["lora_parameters"]["scale"])

    @property
    def only_layers(self) -> bool:
        """Whether embedding, final norm and output head are left as they are."""
        return all(name.startswith("model.layers.") for name in self.table)


def read_adapter(folder: Path) -> Adapter:
    """Checks an adapter folder; ValueError in one line where it is none."""
    if not folder.is_dir():
        raise ValueError(f"--adapter-path {folder}: no such folder")
    if not (folder / CONFIG).is_file() or not (folder / WEIGHTS).is_file():
        other = " (this is an adapter of peft: convert it, or fuse it into the model)" if _of_peft(folder) else ""
        raise ValueError(f"--adapter-path {folder}: expected {CONFIG} and {WEIGHTS}, as mlx_lm.lora writes them{other}")
    file = folder / CONFIG
    settings = read_json_object(file, limit=MAX_CONFIG_BYTES)
    try:
        kind = settings.get("fine_tune_type", "lora")
        if kind not in KINDS:
            raise ValueError(f"fine_tune_type: got {kind!r}, expected one of {', '.join(KINDS)}")
        if kind != "full":
            parameters = settings["lora_parameters"]
            float(parameters["scale"]), int(parameters["rank"]), int(settings["num_layers"])
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{file}: {str(error).splitlines()[0]}") from error
    except (KeyError, TypeError) as error:
        raise ValueError(f"{file}: missing or ill-typed key {error}") from error
    return Adapter(folder, kind, settings, read_header(folder / WEIGHTS)[0])


def _of_peft(folder: Path) -> bool:
    return any(folder.glob("adapter_model.*"))


def fingerprint_model(base: Path, adapter: Path | None) -> str:
    """The identity of a base, with an adapter where there is one: heads of the one refuse the other."""
    plain = fingerprint_base(base)
    if adapter is None:
        return plain
    read = read_adapter(adapter)
    total = hashlib.sha256(f"{plain}\n".encode())
    kept = {k: read.settings.get(k) for k in ("fine_tune_type", "num_layers", "lora_parameters")}
    total.update(json.dumps(kept, sort_keys=True).encode())
    for name, digest in sorted(tensor_digests(RawTensors([adapter / WEIGHTS])).items()):
        total.update(f"{name} {digest}\n".encode())
    return f"sha256:{total.hexdigest()}"
