"""What a checkpoint leaves out of its norms, where mlx-lm adds it when it loads the base: `of_base`, `of_head`.

Qwen3.5 and Qwen3-Next are published with norms from which 1 is left out. mlx-lm adds it where the convolutions are in the
published layout, and conversions store the sum. What becomes of the heads' norms then depends on who converted. Called by
read.py and write.py; families.Dims.norm_offset is for families whose modules add it in every pass.
"""

from collections.abc import Mapping
from typing import Any

from mtpd_mlx.checkpoints.shipped.layouts import Layout
from mtpd_mlx.families.dims import Dims
from mtpd_mlx.families.shapes import names_of
from mtpd_mlx.files.safetensors import RawTensors

DELTA_NETS = ("delta", "joined_delta")


def of_base(table: Mapping[str, Any], dims: Dims) -> float:
    """0 or 1, by the layout of the base's convolutions: [channels, 1, kernel] is the published one."""
    if dims.recurrent is None or dims.recurrent.kind not in DELTA_NETS:
        return 0.0
    shapes = (entry["shape"] for name, entry in table.items() if name.endswith("linear_attn.conv1d.weight"))
    return float(any(shape[-1] != 1 for shape in shapes))


def of_head(source: RawTensors, base: RawTensors, layout: Layout, k: int, dims: Dims) -> float:
    """0 or 1: with which of them the norms of queries and keys of head k are closer to those of the base's last layer that
    attends. ValueError where the tensors are missing."""
    if dims.recurrent is None or dims.recurrent.kind not in DELTA_NETS:
        return 0.0
    names, shipped = names_of(dims), layout.prefix(k, dims.num_layers)
    own = f"{names.inner}.layers.{dims.last_attention}."
    pairs = [(f"{shipped}self_attn.{n}.weight", f"{own}self_attn.{n}.weight") for n in (names.query_norm, names.key_norm)]
    missing = of_base(base.table, dims)

    def distance(offset: float) -> float:
        means = ((source[ours].floats().mean() + offset, base[theirs].floats().mean() + missing) for ours, theirs in pairs)
        return float(sum(abs(a - b) for a, b in means))

    return 0.0 if distance(0.0) < distance(1.0) else 1.0
