"""`settle`, `read_base`: a base by its tensors, if config.json says otherwise.
Called by loading, export and inspection, so that they agree.

Flags that describe the weights (quantization, tied ends)
are often left over from another copy of the model; the tensors cannot be.
"""

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtpd_mlx.families.config import read_config_json, read_dims
from mtpd_mlx.families.dims import Dims
from mtpd_mlx.families.multimodal import text_name
from mtpd_mlx.families.shapes import BLOCKS, LAYER, SCALES, expected
from mtpd_mlx.files.safetensors import RawTensors

logger = logging.getLogger(__name__)
FLOATS = ("F64", "F32", "F16", "BF16")
FLAGS = ("quantization", "quantization_config")
# How AWQ, GPTQ, bitsandbytes, compressed-tensors and fp8 checkpoints name what belongs to a packed matrix.
ELSEWHERE = (".qweight", ".qzeros", ".g_idx", ".weight_packed", ".weight_scale", ".weight_scale_inv", ".absmax", ".SCB")
CONVERT = "mlx_lm.convert makes a model of it that is"
MODES = {(4, 16): "nvfp4", (4, 32): "mxfp4", (8, 32): "mxfp8"}  # (bits, group size) where scales are 8-bit floats
MXFP4 = {"group_size": 32, "bits": 4, "mode": "mxfp4"}  # mlx-lm's settings of it, whoever stored it
Packing = tuple[int, int, str]  # group size, bits, mode


@dataclass(frozen=True)
class Settled:
    """config.json as the tensors have it, and what is built from it. `remarks`: where flags and tensors differ, a line each."""

    config: dict[str, Any]
    dims: Dims
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class StoredBase:
    """A base on disk. `tensors` under the names that the language model has alone; `files`: those that hold them."""

    config: dict[str, Any]
    dims: Dims
    tensors: RawTensors
    files: tuple[Path, ...]
    remarks: tuple[str, ...]

    def say_remarks(self) -> None:
        for remark in self.remarks:
            logger.warning("%s", remark)


def read_base(folder: Path) -> StoredBase:
    """ValueError in one line where the folder's files contradict one another, or the tensors are of no kind that is read."""
    config = read_config_json(folder)
    read_dims(without_flags(config))  # of a family that is not supported, what is missing is not the point
    tensors = RawTensors.of_model(folder, text_name)
    settled = settle(config, tensors.table)
    remarks = (*tensors.remarks, *(f"{folder}: {remark}" for remark in settled.remarks))
    return StoredBase(settled.config, settled.dims, tensors, tuple(tensors.tables), remarks)


def settle(config: dict[str, Any], table: Mapping[str, Any]) -> Settled:
    """`table`: of the language model's tensors. ValueError in one line."""
    told, remarks = config.get("tie_word_embeddings"), []
    tied = "lm_head.weight" not in table and (told is None or bool(told))  # untied without one: a tensor is missing
    bare = without_flags(config)
    shapes = dict(expected(read_dims(bare, tied), table))
    if told and not tied:
        bare["tie_word_embeddings"] = False
        remarks.append("config.json says tie_word_embeddings true, but the weights hold an lm_head.weight: it is read")
    if beyond := layers_beyond(table, config["num_hidden_layers"]):
        remarks.append(f"config.json says num_hidden_layers {config['num_hidden_layers']}: not read are layers {beyond}")
    packings = packed_matrices(table, shapes, config)
    check_floats(table, shapes, packings)
    if packings:
        quantization, remark = _quantization(packings, config, _floats_fit(table, shapes, packings))
        bare |= {flag: quantization for flag in FLAGS if flag == FLAGS[0] or flag in config}
        remarks += remark
    elif any(name.endswith(BLOCKS) for name in shapes):
        bare["quantization"] = MXFP4
    elif any(config.get(flag) for flag in FLAGS):
        remarks.append(f"config.json says {flag_words(config)}, but the weights are in floating point: they are read as such")
    return Settled(bare, read_dims(bare, tied), tuple(remarks))


def _quantization(
    packings: Mapping[str, Packing], config: Mapping[str, Any], floats_fit: bool
) -> tuple[dict[str, Any], list[str]]:
    """(the settings that config.json should have, a remark where it has others). `floats_fit`: the rest of the weights is as it
    says; otherwise its settings stay, and who compares the shapes says what is wrong."""
    told = told_quantization(config)
    others = [stem for stem, packing in packings.items() if settings_of(told, stem) != packing]
    if not others or (told and not floats_fit):
        return told, []
    said = f"says {flag_words(config)}" if told else "speaks of no quantization"
    size, bits, _ = packings[others[0]]
    which = f"{len(others)} of {len(packings)} packed matrices, such as {others[0]} ({bits} bits in groups of {size})"
    return _as_described(packings, told), [f"config.json {said}, but the weights differ in {which}: they are read as they are"]


def layers_beyond(table: Mapping[str, Any], count: int) -> str:
    """The further layers that the weights hold and that are no MTP heads; empty where there are none."""
    held = sorted({int(layer[1]) for name in table if (layer := LAYER.match(name)) and int(layer[1]) >= count})
    return ", ".join(str(i) for i in held if f"model.layers.{i}.eh_proj.weight" not in table)


def without_flags(config: Mapping[str, Any]) -> dict[str, Any]:
    """config.json without the flags that describe how weights are stored."""
    return {name: value for name, value in config.items() if name not in FLAGS}


def packed_names(table: Mapping[str, Any]) -> list[str]:
    """The matrices that MLX packed."""
    stems = (name.removesuffix(".scales") for name in table if name.endswith(".scales"))
    return [stem for stem in stems if table.get(f"{stem}.weight", {}).get("dtype") == "U32"]


def _floats_fit(table: Mapping[str, Any], shapes: Mapping[str, list[int]], packings: Mapping[str, Packing]) -> bool:
    """Whether the tensors that are not packed are those of config.json."""
    plain = {name: shape for name, shape in shapes.items() if name.removesuffix(".weight") not in packings}
    return all(name in table and table[name]["shape"] == shape for name, shape in plain.items())


def packed_matrices(table: Mapping[str, Any], shapes: Mapping[str, list[int]], config: Mapping[str, Any]) -> dict[str, Packing]:
    """How each matrix that MLX packed is packed, by the shapes of its integers and scales. `shapes`: of the matrices. Where
    `config` has other shapes, as it says."""
    found = {}
    for stem in packed_names(table):
        if (shape := shapes.get(f"{stem}.weight")) is None:
            continue
        weight, scales = table[f"{stem}.weight"], table[f"{stem}.scales"]
        columns, groups, words = shape[-1], (scales["shape"] or [0])[-1], (weight["shape"] or [0])[-1]
        if not groups or columns % groups or 32 * words % columns:
            if told := told_quantization(config):
                found[stem] = settings_of(told, stem)
                continue
            got = f"{weight['shape']} words with scales {scales['shape']}"
            raise ValueError(f"weights: {stem}: got {got}, which do not divide into {columns} columns")
        size, bits = columns // groups, 32 * words // columns
        mode = "affine" if scales["dtype"] in FLOATS else MODES.get((bits, size), "")
        if not mode or not 2 <= bits <= 8:
            raise ValueError(
                f"weights: {stem}: {bits} bits in groups of {size} with {scales['dtype']} scales are not supported"
            )
        if mode == "affine" and f"{stem}.biases" not in table:
            raise ValueError(f"weights: missing key '{stem}.biases' (it is quantised)")
        found[stem] = (size, bits, mode)
    return found


def check_floats(table: Mapping[str, Any], shapes: Mapping[str, Any], packings: Mapping[str, Packing]) -> None:
    """ValueError for weights that are neither floating point nor MLX's integers."""
    for name in sorted(table):
        stem = name.rpartition(".")[0]
        if name.endswith(ELSEWHERE) and stem not in packings and (f"{stem}.weight" in shapes):
            raise ValueError(f"weights: {name}: packed in another way than MLX's, which is not supported; {CONVERT}")
    for name in shapes:
        if name.endswith((BLOCKS, SCALES)):
            if name in table and table[name]["dtype"] != "U8":
                raise ValueError(f"weights: {name}: got dtype {table[name]['dtype']}, expected U8")
        elif name in table and table[name]["dtype"] not in FLOATS and name.removesuffix(".weight") not in packings:
            raise ValueError(f"weights: {name}: got dtype {table[name]['dtype']}, expected {' or '.join(FLOATS)}; {CONVERT}")


def told_quantization(config: Mapping[str, Any]) -> dict[str, Any]:
    """MLX's settings as config.json has them (older versions used the other name). ValueError where they are none."""
    told = config.get("quantization")
    if told is None:
        legacy = config.get("quantization_config")
        told = legacy if isinstance(legacy, dict) and "quant_method" not in legacy else {}
    if not isinstance(told, dict):
        raise ValueError(f"config.json: quantization: got {str(told)[:40]!r}, expected an object")
    for settings in (told, *(value for value in told.values() if isinstance(value, dict))):
        for name, kind in (("group_size", "a positive integer"), ("bits", "a number of bits")):
            value = settings.get(name, 1)
            if type(value) is not int or value < 1:
                raise ValueError(f"quantization: {name}: got {str(value)[:40]!r}, expected {kind}")
    return told


def _as_described(packings: Mapping[str, Packing], told: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that config.json should have."""
    counts = Counter(packings.values())
    default = general if (general := settings_of(told)) in counts else counts.most_common(1)[0][0]
    own = {stem: _as_settings(packing) for stem, packing in packings.items() if packing != default}
    return _as_settings(default) | own


def settings_of(told: Mapping[str, Any], stem: str | None = None) -> Packing:
    """What config.json says of one matrix, or of those that have no settings of their own."""
    own = None if stem is None else told.get(stem)
    merged = {**told, **own} if isinstance(own, dict) else told
    return merged.get("group_size", 64), merged.get("bits", 0), merged.get("mode", "affine")


def _as_settings(packing: Packing) -> dict[str, Any]:
    return dict(zip(("group_size", "bits", "mode"), packing, strict=True))


def flag_words(config: Mapping[str, Any]) -> str:
    """What the flags say, shortly: "quantization_config awq", "quantization of 4 bits"."""
    name = next(flag for flag in FLAGS if config.get(flag))
    value = config[name]
    if not isinstance(value, dict):
        return f"{name} {str(value)[:40]!r}"
    method, bits, size = value.get("quant_method"), value.get("bits"), value.get("group_size")
    told = [str(method)[:40]] if method is not None else []
    told += [f"of {str(bits)[:10]} bits"] if bits is not None else []
    told += [f"in groups of {str(size)[:10]}"] if bits is not None and size is not None else []
    return f"{name} {' '.join(told)}".rstrip()
