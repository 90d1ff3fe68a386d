"""From a model that ships heads to a heads checkpoint."""

import os
from pathlib import Path
from typing import Any

from mtpd_mlx.checkpoints.fingerprint import fingerprint_base
from mtpd_mlx.checkpoints.format import CONFIG_NAME, WEIGHTS_NAME, BaseRef, CheckpointConfig
from mtpd_mlx.checkpoints.run_files import forget_run, holds_run
from mtpd_mlx.checkpoints.shipped.convert import read_head, stored_to_plain
from mtpd_mlx.checkpoints.shipped.detect import shipped_heads
from mtpd_mlx.checkpoints.shipped.layouts import LAYOUTS
from mtpd_mlx.families.config import read_config_json
from mtpd_mlx.families.stored import read_base
from mtpd_mlx.files.atomic import write_json
from mtpd_mlx.files.lock import locked
from mtpd_mlx.files.publish import finish, publish, staged
from mtpd_mlx.files.safetensors import Raw, RawTensors, write_raw


def import_heads(model: Path, out: Path, named: str, overwrite: bool = False) -> dict[str, Any]:
    """Writes `out` and returns what detect.shipped_heads says. `named`: how the checkpoint names the base.

    ValueError in one line where the model ships none, or heads that are not of our form. A head's own final norm is kept
    (post_norm) unless it is the base's, bit for bit.
    """
    config = read_config_json(model)
    source = RawTensors.of_model(model, beside=True)
    found = shipped_heads(config, source.table)
    if found is None or found["heads"] == 0:
        announced = f" (config.json announces {found['announced']}, but there are no tensors)" if found else ""
        unread = "".join(f"; {remark}" for remark in source.remarks)
        raise ValueError(f"{model}: ships no MTP heads{announced}{unread}")
    if not found["fits"]:
        raise ValueError(f"{model}: its MTP heads ({found['format']}) cannot be imported: {found['why_not']}")
    with locked(out):
        finish(out)
        if ((out / CONFIG_NAME).exists() or holds_run(out)) and not overwrite:
            raise ValueError(f"--out {out}: holds a checkpoint already; use --overwrite or another folder")
        _write(model, out, named, source, found)
    return found


def _write(model: Path, out: Path, named: str, source: RawTensors, found: dict[str, Any]) -> None:
    base = read_base(model)
    base.say_remarks()
    dims = base.dims
    heads = [read_head(source, LAYOUTS[found["format"]], k, dims) for k in range(found["heads"])]
    final = stored_to_plain(source["model.norm.weight"], dims.norm_offset)
    own_norms = not all(same(head["post_norm.weight"], final) for head in heads)
    if not own_norms:
        for head in heads:
            del head["post_norm.weight"]
    reference = BaseRef(relative(named, out), fingerprint_base(model), dims.model_type, dims.hidden_size, dims.vocab_size)
    record = {"imported": {"format": found["format"]}}
    checkpoint = CheckpointConfig(len(heads), "postnorm", reference, record=record, post_norms=own_norms)
    named_tensors = {f"heads.{k}.{name}": raw for k, head in enumerate(heads) for name, raw in head.items()}
    write_raw(staged(out / WEIGHTS_NAME), named_tensors)
    write_json(staged(out / CONFIG_NAME), checkpoint.to_json())
    forget_run(out)
    publish(out, (WEIGHTS_NAME, CONFIG_NAME), hide=CONFIG_NAME)


def same(a: Raw, b: Raw) -> bool:
    return a.bits.shape == b.bits.shape and bool((a.floats() == b.floats()).all())


def relative(named: str, out: Path) -> str:
    """A hub id as it is, a folder relative to the checkpoint."""
    local = Path(named).expanduser()
    if not local.is_dir():
        return named
    path = os.path.relpath(local.resolve(), out.resolve())
    return path if path.startswith("..") else f"./{path}"
