"""`count`: parameters and bytes of tensor tables.
Called by inspection/describe.py, memory.py and data/own_text.py."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mtpd_mlx.families.config import group_size_of
from mtpd_mlx.families.dims import HELD, MARKS, WINDOW_STEP, Dims, Layer
from mtpd_mlx.families.shapes import BLOCKS, SCALES, block

ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}


@dataclass(frozen=True)
class Counts:
    """parameters: as many numbers as the model has, integers of quantised matrices unpacked; stored: bytes; dtypes: of the
    floating-point tensors, commonest first; quantised: matrices stored in integers."""

    parameters: int
    stored: int
    dtypes: list[str]
    quantised: int


def count(table: Mapping[str, Any], quantization: Mapping[str, Any] | None) -> Counts:
    """Of one merged tensor table."""
    parameters = stored = quantised = 0
    kinds: Counter[str] = Counter()
    for name, entry in table.items():
        size = math.prod(entry["shape"])
        stored += entry["data_offsets"][1] - entry["data_offsets"][0]
        stem = name.removesuffix(".weight")
        if name.endswith((".scales", ".biases", SCALES)):
            continue
        if name.endswith(BLOCKS):
            parameters += 2 * size
            quantised += 1
            continue
        if name.endswith(".weight") and f"{stem}.scales" in table:
            parameters += math.prod(table[f"{stem}.scales"]["shape"]) * group_size_of(quantization, stem)
            quantised += 1
            continue
        parameters += size
        kinds[NAMES.get(entry["dtype"], entry["dtype"])] += size
    return Counts(parameters, stored, [kind for kind, _ in kinds.most_common()], quantised)


def block_parameters(dims: Dims, layer: Layer) -> int:
    """Parameters of one decoder block."""
    return sum(math.prod(shape) for _, shape in block(dims, layer))


def head_parameters(dims: Dims) -> int:
    """Parameters of one MTP head."""
    return block_parameters(dims, dims.head_layer) + 2 * dims.hidden_size**2 + 2 * dims.hidden_size


def cache_bytes(dims: Dims, positions: int, heads: int, item: int, windows: bool = False) -> int:
    """Caches of the base and of `heads` MTP heads that grow with the text: keys and values of layers that attend. `windows`: as
    of Base.make_cache."""
    attending = [layer for layer in dims.layers if layer.mixer == "attention"] + heads * [dims.head_layer]
    held = [positions if layer.window is None or not windows else _rows(layer.window, positions) for layer in attending]
    sizes = [own.num_kv_heads * own.head_dim for own in map(dims.geometry, attending)]
    return 2 * item * sum(rows * size for rows, size in zip(held, sizes, strict=True))


def _rows(window: int, positions: int) -> int:
    """Rows of a WindowCache, at most."""
    return min(positions, window - 1 + HELD + WINDOW_STEP)


def window_state_bytes(dims: Dims, positions: int, item: int) -> int:
    """The state of windows that is kept beside them, from which a text can be taken up again (decoding/rewind.py)."""
    sliding = [layer for layer in dims.layers if layer.window is not None]
    sizes = [min(positions, layer.window - 1) * dims.geometry(layer).num_kv_heads for layer in sliding if layer.window]
    return 2 * item * sum(size * dims.geometry(layer).head_dim for size, layer in zip(sizes, sliding, strict=True))


def state_bytes(dims: Dims, item: int) -> int:
    """Recurrent state of a text, however long. The recurrence is in float32."""
    recurrent = dims.recurrent
    if recurrent is None:
        return 0
    return (dims.recurrent_layers) * (4 * recurrent.state_numbers + item * recurrent.window_numbers)


def rewind_bytes(dims: Dims, item: int) -> int:
    """What is kept beside recurrent state so that it can be taken back: three more states, the layers' last inputs
    (model/recurrent/cache.py), and states of whole texts (decoding/rewind.py)."""
    recurrent = dims.recurrent
    if recurrent is None:
        return 0
    inputs = 2 * HELD * (dims.recurrent_layers) * recurrent.channels * item
    return (3 + MARKS) * state_bytes(dims, item) + inputs
