"""From a heads checkpoint to a model folder that ships the heads, in a layout that servers read."""

import os
import shutil
from pathlib import Path
from typing import Any

from mtpd_mlx.checkpoint_format import WEIGHTS_NAME, CheckpointConfig, read_config, write_json
from mtpd_mlx.families.config import read_config_json, read_dims, weights_say_tied
from mtpd_mlx.families.dims import Dims
from mtpd_mlx.families.wrapped import INSIDE
from mtpd_mlx.fingerprint import fingerprint_base, read_header
from mtpd_mlx.mtp_formats.convert import stored_to_plain, write_head
from mtpd_mlx.mtp_formats.detect import shipped_heads
from mtpd_mlx.mtp_formats.names import COPIES, LAYOUTS, Layout
from mtpd_mlx.safetensors_file import Raw, RawTensors, write_raw

INDEX, HEADS_FILE = "model.safetensors.index.json", "model-mtp.safetensors"


def export_heads(
    checkpoint: Path,
    base: Path,
    out: Path,
    layout: str = "nextn",
    *,
    link: bool = False,
    copy_ends: bool = False,
    allow_mismatch: bool = False,
) -> int:
    """Writes `out`: the base's files (hard links with `link`), the heads in a file of their own, index and config.json.
    `copy_ends` repeats embedding and output head per head, as DeepSeek-V3's checkpoints do. Returns the bytes of the heads."""
    config, model_config = read_config(checkpoint), read_config_json(base)
    if any(name.startswith(INSIDE) for file in base.glob("model*.safetensors") for name in read_header(file)[0]):
        raise ValueError(f"{base}: a multimodal checkpoint has no layout for heads")
    source = RawTensors(sorted(base.glob("model*.safetensors")))
    dims = read_dims(model_config, weights_say_tied(base))
    shape = LAYOUTS[layout]
    _check(checkpoint, config, base, shape, shipped_heads(model_config, source.table), allow_mismatch)
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"--out {out}: is not empty; use another folder")
    tensors = _tensors(RawTensors([checkpoint / WEIGHTS_NAME]), config, shape, dims, source)
    if copy_ends:
        ends = (source["model.embed_tokens.weight"], source["model.embed_tokens.weight" if dims.tied else "lm_head.weight"])
        for k in range(config.num_heads):
            tensors |= {shape.prefix(k, dims.num_layers) + name: raw for name, raw in zip(COPIES, ends, strict=True)}
    out.mkdir(parents=True, exist_ok=True)
    files = _copy_base(base, out, link)
    write_raw(out / HEADS_FILE, tensors)
    _write_index(out, [*files, HEADS_FILE])
    write_json(out / "config.json", model_config | {shape.announce[0]: config.num_heads})
    return (out / HEADS_FILE).stat().st_size


def _check(
    checkpoint: Path, config: CheckpointConfig, base: Path, layout: Layout, shipped: dict[str, Any] | None, allow: bool
) -> None:
    if shipped is not None and shipped["heads"]:
        raise ValueError(f"{base}: ships {shipped['heads']} MTP heads already")
    if not allow and fingerprint_base(base) != config.base.fingerprint:
        raise ValueError(f"{checkpoint}: these heads belong to another base than {base} (fingerprints differ)")
    if config.hidden_source != "postnorm":
        raise ValueError(f"{checkpoint}: hidden_source {config.hidden_source}: servers pass the state after the final norm")
    if config.quantization is not None:
        raise ValueError(f"{checkpoint}: quantised heads have no names in this layout; export the unquantised ones")
    if layout.most is not None and config.num_heads > layout.most:
        raise ValueError(f"{checkpoint}: {config.num_heads} heads, the layout has names for {layout.most}")


def _tensors(heads: RawTensors, config: CheckpointConfig, layout: Layout, dims: Dims, base: RawTensors) -> dict[str, Raw]:
    written: dict[str, Raw] = {}
    stacked = any(".switch_mlp." in name for name in base.table)  # as the base, so that the block is the base's
    for k in range(config.num_heads):
        prefix = f"heads.{k}."
        head = {name.removeprefix(prefix): heads[name] for name in heads.table if name.startswith(prefix)}
        if not config.post_norms:
            head["post_norm.weight"] = stored_to_plain(base["model.norm.weight"], dims.norm_offset)
        written |= write_head(head, layout, k, dims, stacked)
    return written


def _copy_base(base: Path, out: Path, link: bool) -> list[str]:
    """The base's files; a single model.safetensors gets a shard's name, because readers stop looking at that one."""
    weights = []
    for file in sorted(base.iterdir()):
        if not file.is_file() or file.name in (INDEX, "config.json"):
            continue
        name = "model-00001-of-00001.safetensors" if file.name == "model.safetensors" else file.name
        if name.endswith(".safetensors"):
            if not name.startswith("model"):
                continue
            weights.append(name)
        if link and name.endswith(".safetensors"):
            os.link(file.resolve(), out / name)
        else:
            shutil.copyfile(file, out / name)
    return weights


def _write_index(out: Path, files: list[str]) -> None:
    tables = {name: read_header(out / name)[0] for name in files}
    total = sum(e["data_offsets"][1] - e["data_offsets"][0] for table in tables.values() for e in table.values())
    where = {tensor: name for name, table in tables.items() for tensor in table}
    write_json(out / INDEX, {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))})
