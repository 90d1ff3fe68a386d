"""`import_heads`: a heads checkpoint made of a model that ships heads.
Called by `mtpd import-heads`."""

from pathlib import Path
from typing import Any

from mtpd_mlx.checkpoints.fingerprint import fingerprint_base
from mtpd_mlx.checkpoints.format import CONFIG_NAME, WEIGHTS_NAME, BaseRef, CheckpointConfig, named_from, parse_base
from mtpd_mlx.checkpoints.run_files import forget_run, holds_run
from mtpd_mlx.checkpoints.shipped import left_out
from mtpd_mlx.checkpoints.shipped.convert import read_head, stored_to_plain
from mtpd_mlx.checkpoints.shipped.detect import shipped_heads
from mtpd_mlx.checkpoints.shipped.layouts import BASE, LAYOUTS, is_shipped
from mtpd_mlx.families.config import read_config_json
from mtpd_mlx.families.multimodal import text_name
from mtpd_mlx.families.shapes import final_norm
from mtpd_mlx.families.stored import read_base
from mtpd_mlx.files.atomic import write_json
from mtpd_mlx.files.lock import locked
from mtpd_mlx.files.publish import finish, publish, staged
from mtpd_mlx.files.safetensors import Raw, RawTensors, write_raw


def import_heads(model: Path, out: Path, named: str, overwrite: bool = False, base: Path | None = None) -> dict[str, Any]:
    """Writes `out` and returns what detect.shipped_heads says.

    `base`: the folder of the base, where `model` holds heads alone (write.py); `named`: how the checkpoint names the base.

    ValueError in one line where the model ships none, or heads that are not of our form. A head's own final norm is kept
    (post_norm) unless it is the base's, bit for bit.
    """
    source = RawTensors.of_model(model, text_name, beside=True)
    config, table = read_config_json(base or model), source.table
    if base is not None:
        told = read_config_json(model)
        keys = {key for layout in LAYOUTS.values() for key in layout.announce}
        config = {k: v for k, v in config.items() if k not in keys} | {k: v for k, v in told.items() if k in keys}
        own = RawTensors.of_model(base, text_name).table
        table = {n: e for n, e in own.items() if not is_shipped(n, config["num_hidden_layers"])} | table
    found = shipped_heads(config, table)
    if found is None or found["heads"] == 0:
        announced = f" (config.json announces {found['announced']}, but there are no tensors)" if found else ""
        unread = "".join(f"; {remark}" for remark in source.remarks)
        raise ValueError(f"{model}: ships no MTP heads{announced}{unread}; mtpd train makes some")
    if not found["fits"]:
        raise ValueError(f"{model}: its MTP heads ({found['format']}) cannot be imported: {found['why_not']}")
    with locked(out):
        finish(out)
        if ((out / CONFIG_NAME).exists() or holds_run(out)) and not overwrite:
            raise ValueError(f"--out {out}: holds a checkpoint already; use --overwrite or another folder")
        _write(base or model, out, named, source, found)
    return found


def base_of(model: Path) -> BaseRef | None:
    """The base that a folder of heads alone names; None where the folder is a model. ValueError where it is neither."""
    reference = read_config_json(model).get(BASE)
    return None if reference is None else parse_base(reference, f"{model / 'config.json'}: {BASE}")


def _write(model: Path, out: Path, named: str, source: RawTensors, found: dict[str, Any]) -> None:
    base = read_base(model)
    base.say_remarks()
    dims = base.dims
    layout = LAYOUTS[found["format"]]
    missing = [left_out.of_head(source, base.tensors, layout, k, dims) for k in range(found["heads"])]
    heads = [read_head(source, layout, k, dims, missing[k]) for k in range(found["heads"])]
    final = stored_to_plain(base.tensors[final_norm(dims)], dims.norm_offset + left_out.of_base(base.tensors.table, dims))
    own_norms = not all(same(head["post_norm.weight"], final) for head in heads)
    if not own_norms:
        for head in heads:
            del head["post_norm.weight"]
    reference = BaseRef(named_from(named, out), fingerprint_base(model), dims.model_type, dims.hidden_size, dims.vocab_size)
    record = {"imported": {"format": found["format"]} | ({"norms_left_out": missing} if any(missing) else {})}
    checkpoint = CheckpointConfig(len(heads), "postnorm", reference, record=record, post_norms=own_norms)
    named_tensors = {f"heads.{k}.{name}": raw for k, head in enumerate(heads) for name, raw in head.items()}
    write_raw(staged(out / WEIGHTS_NAME), named_tensors)
    write_json(staged(out / CONFIG_NAME), checkpoint.to_json())
    forget_run(out)
    publish(out, (WEIGHTS_NAME, CONFIG_NAME), hide=CONFIG_NAME)


def same(a: Raw, b: Raw) -> bool:
    return a.bits.shape == b.bits.shape and bool((a.floats() == b.floats()).all())
