"""`import_gguf(file, out)`: the model folder in Hugging Face layout that a GGUF file becomes.
Called by `mtpd import-gguf`, the demo and tools/real_model."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtpd_mlx.checkpoints.gguf.config import architecture_of, model_config
from mtpd_mlx.checkpoints.gguf.reader import read_gguf
from mtpd_mlx.checkpoints.gguf.tensors import Plan, plan
from mtpd_mlx.checkpoints.gguf.tokenizer import tokenizer_files
from mtpd_mlx.families.config import read_dims
from mtpd_mlx.files.atomic import replacing_folder, write_json
from mtpd_mlx.files.lock import is_empty, locked
from mtpd_mlx.files.safetensors import write_made

WIDE = ("gemma3",)  # whose residual stream goes beyond float16
NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
CONFIG, WEIGHTS = "config.json", "model.safetensors"


@dataclass(frozen=True)
class Imported:
    """What was made, for the one line that says so."""

    architecture: str
    parameters: int
    exact: dict[str, int]
    dense: dict[str, int]
    dtype: str

    def __str__(self) -> str:
        parts = [f"exact: {_listed(self.exact)}"] if self.exact else []
        parts += [f"in {self.dtype}: {_listed(self.dense)}"]
        return f"{self.architecture}, {self.parameters / 1e6:.1f}M parameters; tensors {'; '.join(parts)}"


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))


def import_gguf(file: Path, out: Path, dequantize: bool = False, overwrite: bool = False) -> Imported:
    """Q4_0, Q4_1 and Q8_0 matrices keep their integers unless `dequantize`; all else becomes floating point. Writes all of
    `out` or, where a ValueError says in one line what is wrong with the file, nothing."""
    source = read_gguf(file)
    architecture = architecture_of(source)
    config = model_config(source)
    try:
        dims = read_dims(config)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    wanted = plan(source, dims, architecture == "llama", dequantize, architecture in WIDE)
    files = tokenizer_files(source, config["max_position_embeddings"])
    config |= files["generation_config.json"] | {"torch_dtype": NAMES[wanted.dtype]}
    if wanted.quantization is not None:
        config["quantization"] = wanted.quantization
    with locked(out, beside=True):
        _check_target(file, out, overwrite)
        with replacing_folder(out) as folder:
            _write(folder, file, wanted, files | {CONFIG: config})
    return Imported(architecture, wanted.parameters, dict(wanted.exact), dict(wanted.dense), NAMES[wanted.dtype])


def _check_target(file: Path, out: Path, overwrite: bool) -> None:
    """A new or empty folder, or with `overwrite` a model's: never anything else."""
    if not out.exists() or is_empty(out):
        return
    if not overwrite:
        raise ValueError(f"--out {out}: exists already; use --overwrite or another folder")
    if not (out / CONFIG).is_file() or out.resolve() in file.resolve().parents:
        raise ValueError(f"--out {out}: holds files that are no model's, which --overwrite would delete; use another folder")


def _write(folder: Path, file: Path, wanted: Plan, files: dict[str, Any]) -> None:
    for name, values in files.items():
        write_json(folder / name, values)
    entries = [(entry.name, entry.dtype, entry.shape, entry.nbytes, entry.make) for entry in wanted.entries]
    try:
        write_made(folder / WEIGHTS, entries, "pt" if wanted.quantization is None else "mlx")
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
