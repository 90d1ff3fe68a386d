"""`export_heads`: a folder in a layout that other engines read, heads alone or with the base.
Called by `mtpd export-heads`."""

import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mtpd_mlx.checkpoints.fingerprint import fingerprint_base
from mtpd_mlx.checkpoints.format import WEIGHTS_NAME, BaseRef, CheckpointConfig, named_from, read_config
from mtpd_mlx.checkpoints.quantised import dequantise
from mtpd_mlx.checkpoints.shipped import joined_mlp, left_out
from mtpd_mlx.checkpoints.shipped.convert import holds_stacked, stored_to_plain, write_head
from mtpd_mlx.checkpoints.shipped.detect import shipped_heads
from mtpd_mlx.checkpoints.shipped.layouts import (
    BASE,
    COPIES,
    DEFAULT_LAYOUT,
    HEADS_FILE,
    HEADS_FOLDER,
    LAYER_TYPES,
    LAYOUTS,
    THE_FOLDER_ABOVE,
    TRANSFORMERS,
    Layout,
    is_shipped,
)
from mtpd_mlx.checkpoints.shipped.vllm import NAMES_OF_VLLM, VLLM, for_vllm
from mtpd_mlx.families.config import read_config_json
from mtpd_mlx.families.dims import Dims
from mtpd_mlx.families.layers import FULL
from mtpd_mlx.families.multimodal import INSIDE
from mtpd_mlx.families.shapes import embedding, final_norm
from mtpd_mlx.families.stored import FLAGS, read_base
from mtpd_mlx.files.atomic import replacing_folder, write_json
from mtpd_mlx.files.lock import NAME as LOCK
from mtpd_mlx.files.lock import is_empty, locked
from mtpd_mlx.files.model_files import INDEX, SINGLE, chosen
from mtpd_mlx.files.safetensors import Raw, RawTensors, copy_tensors, read_header, write_raw


@dataclass(frozen=True)
class Exported:
    """heads: how many; bytes: of them; replaced: heads that the base shipped and the folder no longer holds; draft_vocab: the
    draft vocabulary that no layout has a place for; bits: of the heads' integers, written in floating point."""

    heads: int
    bytes: int
    replaced: int
    draft_vocab: int | None
    bits: int | None


def export_heads(
    checkpoint: Path,
    base: Path,
    out: Path,
    layout: str = DEFAULT_LAYOUT,
    *,
    named: str | None = None,
    with_base: bool = False,
    link: bool = False,
    copy_ends: bool = False,
    allow_mismatch: bool = False,
) -> Exported:
    """Writes `out`: the heads and a config.json that announces them, the base untouched.

    `with_base`: instead a copy of the base's files (hard links with `link`) without heads that it ships, and ours in a file of
    their own that the index names; with the layout vllm a copy of the base as it is, and the heads in its folder `heads`.
    `named`: how the folder names the base (None: by its folder).

    Quantised heads are written in floating point, because no layout has names for integers.

    `copy_ends` repeats embedding and output head per head, as DeepSeek-V3's checkpoints do. ValueError in one line where the
    layout has no place for these heads.
    """
    config, model_config = read_config(checkpoint), read_config_json(base)
    source = RawTensors.of_model(base, beside=True)
    if any(name.startswith(INSIDE) for name in source):
        raise ValueError(
            f"{base}: is multimodal, and no layout has a place for heads in such a model; export "
            "the heads alone, without --with-base"
        )
    stored, shape = read_base(base), LAYOUTS[NAMES_OF_VLLM if layout == VLLM else layout]
    stored.say_remarks()
    dims = stored.dims
    _check_form(layout, shape, dims)
    _check(checkpoint, config, base, shape, allow_mismatch)
    stacked = layout != VLLM and holds_stacked(source.table, dims)  # as the base, which is in mlx-lm's form
    tensors = _tensors(RawTensors([checkpoint / WEIGHTS_NAME]), config, shape, dims, source, stacked)
    if copy_ends:
        ends = (source[embedding(dims)], source[embedding(dims) if dims.tied else "lm_head.weight"])
        for k in range(config.num_heads):
            tensors |= {shape.prefix(k, dims.num_layers) + name: raw for name, raw in zip(COPIES, ends, strict=True)}
    announcing = _announcing(stored.config, shape, config.num_heads, dims)
    inside = with_base and layout == VLLM  # a folder of heads in that of the base
    if inside or not with_base:
        where = THE_FOLDER_ABOVE if inside else named_from(named or str(base), out)
        announcing = _alone(announcing, replace(config.base, id=where))
    if layout == VLLM:
        announcing |= for_vllm(dims, config.num_heads)
    joined = with_base and not inside
    heads_file = HEADS_FILE if joined else f"{HEADS_FOLDER}/{SINGLE}" if inside else SINGLE
    _check_empty(out)
    with locked(out), replacing_folder(out) as folder:
        _check_empty(out)  # again: another run may have ended in between
        if inside:
            _copy_whole(base, folder, link)
            (folder / HEADS_FOLDER).mkdir()
        write_raw(folder / heads_file, tensors)
        if joined:
            _write_index(folder, [*_copy_base(base, folder, link, dims.num_layers), HEADS_FILE])
        write_json(folder / (HEADS_FOLDER if inside else "") / "config.json", announcing)
    gone = shipped_heads(model_config, source.table) if joined else None
    size = (out / heads_file).stat().st_size
    bits = config.quantization["bits"] if config.quantization else None
    return Exported(config.num_heads, size, gone["heads"] if gone else 0, config.draft_vocab, bits)


def _check(checkpoint: Path, config: CheckpointConfig, base: Path, layout: Layout, allow: bool) -> None:
    if not allow and config.base.adapter is not None:
        raise ValueError(
            f"{checkpoint}: these heads belong to {config.base.named} with the adapter {config.base.adapter}: make one model "
            "of them (mlx_lm.fuse) and give it as --model with --allow-base-mismatch"
        )
    if not allow and not config.base.fits(fingerprint_base(base)):
        raise ValueError(
            f"{checkpoint}: these heads belong to another base than {base} (fingerprints differ); adapt them with mtpd refit, "
            "or pass --allow-base-mismatch"
        )
    if config.hidden_source != "postnorm":
        raise ValueError(
            f"{checkpoint}: got heads with hidden_source {config.hidden_source}, expected postnorm: "
            "servers pass the state after the final norm"
        )
    most = layout.writes or layout.most
    if most is not None and config.num_heads > most:
        raise ValueError(f"{checkpoint}: got {config.num_heads} heads, expected at most {most}: {layout.because}")


def _check_form(name: str, layout: Layout, dims: Dims) -> None:
    """ValueError where the layout has no place for a block such as the base's."""
    if dims.paired and layout.mlp is None:
        halves = [n for n, other in LAYOUTS.items() if other.mlp is not None]
        raise ValueError(
            f"--format {name}: got a base of the family {dims.model_type}, whose blocks are of one branch each; "
            f"expected --format {' or '.join(halves)}"
        )
    if layout.mlp is not None and not dims.paired:
        raise ValueError(f"--format {name}: got a base of the family {dims.model_type}, expected blocks of one branch each")


def _check_empty(out: Path) -> None:
    if out.is_symlink() or (out.exists() and not (out.is_dir() and is_empty(out))):
        raise ValueError(f"--out {out}: is not empty; use another folder")


def _announcing(config: dict[str, Any], layout: Layout, heads: int, dims: Dims) -> dict[str, Any]:
    """config.json with the number of heads under the layout's key, and none under those of other layouts. Of blocks of one
    branch which two a head is, in the form of NVIDIA's files and as SGLang reads it.

    num_mtp_layers and mtp_layer_types are what transformers' MTP decoding asks for beside it.
    """
    keys = {key for other in LAYOUTS.values() for key in other.announce} | {LAYER_TYPES}
    kept = {name: value for name, value in config.items() if name not in keys}
    kept |= {layout.announce[0]: heads, TRANSFORMERS: heads}
    if layout.mlp is not None:
        mlp, sign = ("moe", "E") if dims.head_layer.experts else ("mlp", "-")
        kept |= {"mtp_layers_block_type": [FULL, mlp], "mtp_hybrid_override_pattern": f"*{sign}"}
    return kept | ({LAYER_TYPES: [FULL] * heads} if config.get("layer_types") else {})


def _alone(config: dict[str, Any], base: BaseRef) -> dict[str, Any]:
    """config.json of heads without their base: it names that one. Heads are in floating point whatever the base is."""
    return {name: value for name, value in config.items() if name not in FLAGS} | {BASE: base.to_json()}


def _tensors(
    heads: RawTensors, config: CheckpointConfig, layout: Layout, dims: Dims, base: RawTensors, stacked: bool
) -> dict[str, Raw]:
    written: dict[str, Raw] = {}
    missing = left_out.of_base(base.table, dims)
    for k in range(config.num_heads):
        prefix = f"heads.{k}."
        head = {name.removeprefix(prefix): heads[name] for name in heads.table if name.startswith(prefix)}
        if config.quantization is not None:
            head = dequantise(head, config.quantization["group_size"], config.quantization["bits"])
        if not config.post_norms:
            head["post_norm.weight"] = stored_to_plain(base[final_norm(dims)], dims.norm_offset + missing)
        tensors = write_head(head, layout, k, dims, stacked, missing)
        joined = dims.experts is None and joined_mlp.is_joined(base.table)
        written |= joined_mlp.join(tensors, layout.prefix(k, dims.num_layers)) if joined else tensors
    return written


def _copy_base(base: Path, out: Path, link: bool, num_layers: int) -> list[str]:
    """The base's files; the names of those with weights. A single model.safetensors gets a shard's name, because readers stop
    looking at that one, and each a name that mlx_lm.load looks for; a file that holds shipped heads is written anew without
    them."""
    files = chosen(base)
    for file in sorted(base.iterdir()):
        if file.is_file() and file.suffix != ".safetensors" and file.name not in (INDEX, "config.json", LOCK):
            shutil.copyfile(file, out / file.name)
    weights = []
    for file in (base / name for name in files.weights if name not in files.beside):
        name = "model-00001-of-00001.safetensors" if file.name == SINGLE else file.name
        name = name if name.startswith("model") else f"model-{name}"
        table, _ = read_header(file)
        kept = [tensor for tensor in table if not is_shipped(tensor, num_layers)]
        if not kept:
            continue
        weights.append(name)
        if len(kept) < len(table):
            copy_tensors(file, out / name, kept)
        elif link:
            os.link(file.resolve(), out / name)
        else:
            shutil.copyfile(file, out / name)
    return weights


def _copy_whole(base: Path, out: Path, link: bool) -> None:
    """The base as it is: all that is read of its weights, and every other file."""
    for file in sorted(base.iterdir()):
        if not file.is_file() or file.name == LOCK or (file.suffix == ".safetensors" and file.name not in chosen(base).weights):
            continue
        if link and file.suffix == ".safetensors":
            os.link(file.resolve(), out / file.name)
        else:
            shutil.copyfile(file, out / file.name)


def _write_index(out: Path, files: list[str]) -> None:
    tables = {name: read_header(out / name)[0] for name in files}
    total = sum(e["data_offsets"][1] - e["data_offsets"][0] for table in tables.values() for e in table.values())
    where = {tensor: name for name, table in tables.items() for tensor in table}
    write_json(out / INDEX, {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))})
