"""`is_joined`, `part`, `join`: Granite 4's feed-forward layer, gate and up in one matrix, to mlx-lm's names and back.
Called by shipped/convert.py and write.py."""

from collections.abc import Iterable, Mapping

import numpy as np

from mtpd_mlx.files.safetensors import Raw

JOINED, DOWN = "shared_mlp.input_linear.weight", "shared_mlp.output_linear.weight"
GATE, UP, OURS = "mlp.gate_proj.weight", "mlp.up_proj.weight", "mlp.down_proj.weight"


def is_joined(table: Iterable[str]) -> bool:
    """Whether a base has it as published."""
    return any(name.endswith(f".{JOINED}") for name in table)


def part(tensors: Mapping[str, Raw], prefix: str = "") -> dict[str, Raw]:
    """Published names -> ours, of the block whose names begin with `prefix`; other blocks stay."""
    if f"{prefix}{JOINED}" not in tensors:
        return dict(tensors)
    kept = dict(tensors)
    whole = kept.pop(f"{prefix}{JOINED}")
    for name, bits in zip((GATE, UP), np.split(whole.bits, 2), strict=True):
        kept[f"{prefix}{name}"] = Raw(whole.dtype, bits.copy())
    return kept | {f"{prefix}{OURS}": kept.pop(f"{prefix}{DOWN}")}


def join(tensors: Mapping[str, Raw], prefix: str = "") -> dict[str, Raw]:
    """The inverse."""
    kept = dict(tensors)
    gate, up, down = (kept.pop(f"{prefix}{name}") for name in (GATE, UP, OURS))
    return kept | {f"{prefix}{JOINED}": Raw(gate.dtype, np.concatenate([gate.bits, up.bits])), f"{prefix}{DOWN}": down}
