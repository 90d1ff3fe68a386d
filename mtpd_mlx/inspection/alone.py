"""`speaks_of`: the tensors that a config.json announces if no weights lie beside it.
Called by inspection/describe.py."""

import math
from collections.abc import Iterator
from typing import Any

from mtpd_mlx.families.config import read_dims
from mtpd_mlx.families.shapes import BLOCKS, SCALES, expected
from mtpd_mlx.families.stored import CONVERT, flag_words, settings_of, told_quantization, without_flags

DTYPES = {"bfloat16": ("BF16", 2), "float16": ("F16", 2), "float32": ("F32", 4)}
Entry = tuple[str, dict[str, Any]]


class _Form(dict[str, Any]):
    """Stands for a table that holds every tensor whose name ends so (families/shapes.py asks how mixtures are stored)."""

    def __init__(self, *ends: str):
        super().__init__()
        self.ends = ends

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name.endswith(self.ends)


def speaks_of(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """A tensor table as of a safetensors header. Of a quantised model every matrix is taken to be packed that divides into
    groups, but those whose settings are false. ValueError where family or packing are not supported."""
    kind, item = DTYPES.get(str(config.get("dtype") or config.get("torch_dtype")), DTYPES["float32"])
    told, foreign = told_quantization(config), config.get("quantization_config")
    if told.get("bits"):
        form = _Form(
            "switch_mlp.gate_proj.weight", "switch_glu.gate_proj.weight", "experts.gate_proj.weight", "switch_mlp.fc1.weight"
        )
    else:
        blocks = isinstance(foreign, dict) and foreign.get("quant_method") == "mxfp4"
        form = _Form(BLOCKS) if blocks else _Form()
        if foreign and not blocks:
            raise ValueError(f"config.json says {flag_words(config)}: only MLX's packing and MXFP4 are supported; {CONVERT}")
    table = {}
    for name, shape in expected(read_dims(without_flags(config)), form):
        if name.endswith((BLOCKS, SCALES)):
            table[name] = _entry("U8", shape, 1)
        elif told.get("bits") and len(shape) > 1 and name.endswith(".weight"):
            table |= dict(_packed(name, shape, told, (kind, item)))
        else:
            table[name] = _entry(kind, shape, item)
    return table


def _packed(name: str, shape: list[int], told: dict[str, Any], kind: tuple[str, int]) -> Iterator[Entry]:
    stem, columns = name.removesuffix(".weight"), shape[-1]
    size, bits, mode = settings_of(told, stem)
    if told.get(stem) is False or columns % size or columns * bits % 32:
        yield name, _entry(kind[0], shape, kind[1])
        return
    groups = [*shape[:-1], columns // size]
    yield name, _entry("U32", [*shape[:-1], columns * bits // 32], 4)
    if mode == "affine":
        yield f"{stem}.scales", _entry(kind[0], groups, kind[1])
        yield f"{stem}.biases", _entry(kind[0], groups, kind[1])
    else:
        yield f"{stem}.scales", _entry("U8", groups, 1)


def _entry(dtype: str, shape: list[int], item: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [0, math.prod(shape) * item]}
