"""`read_head`, `write_head`: one head's tensors between a layout and ours (names, order, norm offset, experts).
Called by shipped/read.py, write.py and detect.py."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np

from mtpd_mlx.checkpoints.shipped.joined_mlp import part
from mtpd_mlx.checkpoints.shipped.layouts import COPIES, Layout
from mtpd_mlx.families.dims import Dims, Experts
from mtpd_mlx.files.safetensors import Raw, RawTensors

PLAIN_NORMS = ("hnorm", "enorm", "post_norm")


def swap_halves(raw: Raw) -> Raw:
    """[d, 2d]: columns of hidden and embedding exchanged."""
    half = raw.bits.shape[1] // 2
    return Raw(raw.dtype, np.concatenate([raw.bits[:, half:], raw.bits[:, :half]], axis=1))


def stored_to_plain(raw: Raw, offset: float) -> Raw:
    """A family's norm weight as ours, which has no offset. In float32 where there is one."""
    return raw if offset == 0 else Raw.of_floats(raw.floats() + np.float32(offset))


def plain_to_stored(raw: Raw, offset: float) -> Raw:
    """The inverse, chosen such that stored_to_plain gives back exactly what came in."""
    if offset == 0:
        return raw
    plain = raw.floats()
    stored = plain - np.float32(offset)
    for _ in range(4):
        again = stored + np.float32(offset)
        step = np.where(again < plain, np.float32(np.inf), np.float32(-np.inf))
        stored = np.where(again == plain, stored, np.nextafter(stored, step))
    return Raw.of_floats(stored)


def read_head(source: RawTensors, layout: Layout, k: int, dims: Dims, left_out: float = 0.0) -> dict[str, Raw]:
    """Head k of a shipped checkpoint under our names: hnorm.weight, ..., block.*. `left_out`: of its norms (left_out.py)."""
    names = layout.names(k, dims.num_layers)
    head = {f"{ours}.weight": source[name] for ours, name in names.items()}
    if not layout.hidden_first:
        head["eh_proj.weight"] = swap_halves(head["eh_proj.weight"])
    for norm in PLAIN_NORMS:
        head[f"{norm}.weight"] = stored_to_plain(head[f"{norm}.weight"], dims.norm_offset + left_out)
    block = {ours: source[name] for name, ours in block_names(source.table, layout, k, dims.num_layers).items()}
    block = {n: stored_to_plain(raw, left_out) if n.endswith("norm.weight") else raw for n, raw in block.items()}
    block = part(block) if dims.experts is None else stack_experts(block, dims)
    return head | {f"block.{name}": raw for name, raw in block.items()}


def block_names(table: Iterable[str], layout: Layout, k: int, num_layers: int) -> dict[str, str]:
    """The tensors of head k's block -> their names inside our block, before experts are stacked."""
    beside = {*layout.names(k, num_layers).values(), *(f"{layout.prefix(k, num_layers)}{copy}" for copy in COPIES)}
    found: dict[str, str] = {}
    for theirs, ours in layout.prefixes(k, num_layers).items():
        found |= {n: f"{ours}{n.removeprefix(theirs)}" for n in table if n.startswith(theirs) and n not in beside}
    return found


def write_head(
    head: Mapping[str, Raw], layout: Layout, k: int, dims: Dims, stacked: bool = False, left_out: float = 0.0
) -> dict[str, Raw]:
    """The inverse of read_head; `head` includes post_norm.weight. `stacked`: experts stay as mlx-lm holds them."""
    names, prefixes = layout.names(k, dims.num_layers), layout.prefixes(k, dims.num_layers)
    written = {}
    for ours, name in names.items():
        raw = head[f"{ours}.weight"]
        if ours in PLAIN_NORMS:
            raw = plain_to_stored(raw, dims.norm_offset + left_out)
        elif not layout.hidden_first:
            raw = swap_halves(raw)
        written[name] = raw
    block = {name.removeprefix("block."): raw for name, raw in head.items() if name.startswith("block.")}
    block = {n: plain_to_stored(raw, left_out) if n.endswith("norm.weight") else raw for n, raw in block.items()}
    block = block if stacked else unstack_experts(block, dims)
    for theirs, ours in prefixes.items():
        written |= {f"{theirs}{name.removeprefix(ours)}": raw for name, raw in block.items() if name.startswith(ours)}
    return written


def holds_stacked(table: Iterable[str], dims: Dims) -> bool:
    """Whether a base's experts are as mlx-lm holds them."""
    return dims.experts is not None and any(f".{dims.experts.stacked}.{dims.experts.parts[0]}." in name for name in table)


def stack_experts(block: Mapping[str, Raw], dims: Dims) -> dict[str, Raw]:
    """Experts one by one, or fused (Hugging Face) -> stacked as mlx-lm holds them."""
    if (experts := in_a_head(dims)) is None:
        return dict(block)
    path, stem = _stems(experts)
    if experts.fused or f"{path}{experts.joined[0]}" in block:
        return part_experts(block, experts)
    if not any(".experts." in name for name in block):
        return dict(block)
    kept = {n: r for n, r in block.items() if ".experts." not in n}
    for theirs, ours in zip(experts.names, experts.parts, strict=True):
        one = [block[f"{path}experts.{e}.{theirs}.weight"] for e in range(experts.count)]
        kept[f"{stem}{ours}.weight"] = Raw(one[0].dtype, np.stack([raw.bits for raw in one]))
    return kept


def in_a_head(dims: Dims) -> Experts | None:
    """The experts of a head's block: where blocks hold one branch each, of its second half."""
    return replace(dims.experts, path=f"mlp.{dims.experts.path}") if dims.experts is not None and dims.paired else dims.experts


def stacked_shapes(shapes: Mapping[str, list[int]], experts: Experts | None) -> dict[str, list[int]]:
    """Shapes of a block's tensors as if its experts were stacked, whichever of the three forms they have. gpt-oss's stay."""
    if experts is None or experts.bias:
        return dict(shapes)
    (path, stem), stacked = _stems(experts), dict[str, list[int]]()
    ours, alone = dict(zip(experts.names, experts.parts, strict=True)), f"{path}experts."
    for name, shape in shapes.items():
        number, _, part = name.removeprefix(alone).partition(".")
        if name == f"{path}{experts.joined[0]}":
            half = [shape[0], shape[1] // 2, *shape[2:]]
            stacked |= {f"{stem}{gate_or_up}.weight": half for gate_or_up in experts.parts[:2]}
        elif name == f"{path}{experts.joined[1]}":
            stacked[f"{stem}{experts.parts[2]}.weight"] = shape
        elif not name.startswith(alone) or name.startswith(stem):
            stacked[name] = shape
        elif number.isdigit() and part.removesuffix(".weight") in ours:
            if int(number) == experts.count - 1:
                stacked[f"{stem}{ours[part.removesuffix('.weight')]}.weight"] = [experts.count, *shape]
        else:
            stacked[name] = shape
    return stacked


def unstack_experts(block: Mapping[str, Raw], dims: Dims) -> dict[str, Raw]:
    """The inverse."""
    if (experts := in_a_head(dims)) is None:
        return dict(block)
    if experts.fused:
        return fuse_experts(block, experts)
    path, stem = _stems(experts)
    if not any(name.startswith(stem) for name in block):
        return dict(block)
    kept = {n: r for n, r in block.items() if not n.startswith(stem)}
    for theirs, ours in zip(experts.names, experts.parts, strict=True):
        stacked = block[f"{stem}{ours}.weight"]
        for e in range(experts.count):
            kept[f"{path}experts.{e}.{theirs}.weight"] = Raw(stacked.dtype, stacked.bits[e])
    return kept


def part_experts(block: Mapping[str, Raw], experts: Experts) -> dict[str, Raw]:
    """Fused matrices of all experts -> gate, up and down [E, out, in] as mlx-lm holds them. gpt-oss has [E, in, gate and up in
    turn], and biases; Gemma 4 [E, gate, then up, in]."""
    (path, stem), kept = _stems(experts), dict(block)
    if f"{path}{experts.joined[0]}" not in block:
        return kept
    for fused, parts in _fused(experts):
        whole, count = kept.pop(f"{path}{fused}"), len(parts)
        if not experts.bias:
            for part, bits in zip(parts, np.split(whole.bits, count, axis=1), strict=True):
                kept[f"{stem}{part}.weight"] = Raw(whole.dtype, bits.copy())
            continue
        bias = kept.pop(f"{path}{fused}_bias")
        for i, part in enumerate(parts):
            kept[f"{stem}{part}.weight"] = Raw(whole.dtype, whole.bits.swapaxes(1, 2)[:, i::count].copy())
            kept[f"{stem}{part}.bias"] = Raw(bias.dtype, bias.bits[:, i::count].copy())
    return kept


def fuse_experts(block: Mapping[str, Raw], experts: Experts) -> dict[str, Raw]:
    """The inverse of part_experts."""
    (path, stem), kept = _stems(experts), dict(block)
    if f"{stem}{experts.parts[0]}.weight" not in block:
        return kept
    for fused, parts in _fused(experts):
        weights = [kept.pop(f"{stem}{part}.weight") for part in parts]
        count, outputs, inputs = weights[0].bits.shape
        if not experts.bias:
            kept[f"{path}{fused}"] = Raw(weights[0].dtype, np.concatenate([w.bits for w in weights], axis=1))
            continue
        biases = [kept.pop(f"{stem}{part}.bias") for part in parts]
        rows = np.stack([w.bits for w in weights], axis=2).reshape(count, outputs * len(parts), inputs)
        kept[f"{path}{fused}"] = Raw(weights[0].dtype, rows.swapaxes(1, 2).copy())
        kept[f"{path}{fused}_bias"] = Raw(biases[0].dtype, np.stack([b.bits for b in biases], axis=2).reshape(count, -1))
    return kept


def _fused(experts: Experts) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """A fused tensor's name -> the parts that it holds."""
    return (experts.joined[0], experts.parts[:2]), (experts.joined[1], experts.parts[2:])


def _stems(experts: Experts) -> tuple[str, str]:
    """Where a block's mixture lies, and where its experts lie stacked."""
    path = f"{experts.path}." if experts.path else ""
    return path, f"{path}{experts.stacked}."
