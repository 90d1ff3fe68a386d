"""`shipped_heads`: the heads that a checkpoint ships, found by its tensors; config.json is only repeated.
Called by shipped/read.py, write.py and inspection."""

from collections.abc import Mapping
from typing import Any

from mtpd_mlx.checkpoints.shipped.convert import block_names, in_a_head, stacked_shapes
from mtpd_mlx.checkpoints.shipped.layouts import LAYOUTS, Layout, is_shipped
from mtpd_mlx.families.config import group_size_of
from mtpd_mlx.families.dims import Dims
from mtpd_mlx.families.shapes import BLOCKS, SCALES, names_of
from mtpd_mlx.families.stored import settle


def shipped_heads(config: dict[str, Any], table: Mapping[str, Any]) -> dict[str, Any] | None:
    """None where neither tensors nor config speak of heads; else format, heads (by tensors), announced, fits and why_not."""
    layers = config.get("num_hidden_layers")
    if type(layers) is not int:
        return None
    announced = next((v for layout in LAYOUTS.values() for k in layout.announce if type(v := config.get(k)) is int), 0)
    shipped = [name for name in table if is_shipped(name, layers)]
    if not shipped:
        return {"format": None, "heads": 0, "announced": announced, "fits": False} if announced else None
    for name, layout in LAYOUTS.items():
        heads = 0
        while heads < (layout.most or len(shipped)) and layout.names(heads, layers)["eh_proj"] in table:
            heads += 1
        if heads:
            why = why_not(config, table, layout, heads)
            return {"format": name, "heads": heads, "announced": announced, "fits": why is None, "why_not": why}
    why = f"unknown names, such as {sorted(shipped)[0]}"
    return {"format": "unknown", "heads": 1, "announced": announced, "fits": False, "why_not": why}


def why_not(config: dict[str, Any], table: Mapping[str, Any], layout: Layout, heads: int) -> str | None:
    """What keeps these heads from being ours, or None: their block must be the base's last one that attends (with the last MLP
    where blocks hold one branch each), tensor by tensor (in floating point, where the base is quantised)."""
    try:
        settled = settle(config, table)
        dims = settled.dims
        block = _last_block(settled.config, table, dims)
    except ValueError as error:
        return str(error)
    for k in range(heads):
        for ours, name in layout.names(k, dims.num_layers).items():
            width = [dims.hidden_size, 2 * dims.hidden_size] if ours == "eh_proj" else [dims.hidden_size]
            if name not in table:
                return f"missing key {name!r}"
            if table[name]["shape"] != width:
                return f"{name}: got shape {table[name]['shape']}, expected {width}"
        found = {ours: table[name]["shape"] for name, ours in block_names(table, layout, k, dims.num_layers).items()}
        found, block = (stacked_shapes(shapes, in_a_head(dims)) for shapes in (found, block))
        for name in sorted(block.keys() ^ found.keys()):
            what = "missing" if name in block else "unexpected"
            return f"the block is not the base's: {what} key {_theirs(name, layout, k, dims)!r}"
        for name in sorted(block):
            if block[name] != found[name]:
                return f"{_theirs(name, layout, k, dims)}: got shape {found[name]}, expected {block[name]}"
    return None


def _theirs(name: str, layout: Layout, k: int, dims: Dims) -> str:
    """What head k's checkpoint calls the tensor `name` of our block."""
    prefixes = layout.prefixes(k, dims.num_layers).items()
    return next((theirs + name.removeprefix(ours) for theirs, ours in prefixes if name.startswith(ours)), name)


def _last_block(config: dict[str, Any], table: Mapping[str, Any], dims: Dims) -> dict[str, list[int]]:
    """Shapes of the tensors of the block that heads are like, under the names inside a head's block."""
    halves = {"attention.": dims.last_attention, "mlp.": dims.last_mlp} if dims.paired else {"": dims.last_attention}
    inner, block = names_of(dims).inner, dict[str, list[int]]()
    for half, layer in halves.items():
        shapes = _floating_block(config, table, f"{inner}.layers.{layer}.")
        block |= {f"{half}{name}": shape for name, shape in shapes.items()}
    return block


def _floating_block(config: dict[str, Any], table: Mapping[str, Any], prefix: str) -> dict[str, list[int]]:
    """Shapes of a block's tensors by name, those of quantised matrices as they are unpacked."""
    shapes = {n.removeprefix(prefix): list(e["shape"]) for n, e in table.items() if n.startswith(prefix)}
    for scales in [name for name in shapes if name.endswith(".scales")]:
        matrix = scales.removesuffix(".scales")
        *rows, groups = shapes.pop(scales)
        shapes.pop(f"{matrix}.biases", None)
        shapes[f"{matrix}.weight"] = [*rows, groups * group_size_of(config.get("quantization"), prefix + matrix)]
    for blocks in [name for name in shapes if name.endswith(BLOCKS)]:
        count, rows, groups, _ = shapes.pop(blocks)
        shapes.pop(matrix := blocks.removesuffix(BLOCKS) + SCALES)
        shapes[matrix.removesuffix(SCALES)] = [count, groups * 32, rows]
    return shapes
