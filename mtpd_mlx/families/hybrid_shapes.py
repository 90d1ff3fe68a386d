"""`recurrence`: names and shapes of the tensors of recurrent layers.
Called by families/shapes.py."""

from collections.abc import Iterator, Mapping
from typing import Any

from mtpd_mlx.families.dims import Dims, Recurrent

Named = Iterator[tuple[str, list[int]]]


def recurrence(prefix: str, dims: Dims, table: Mapping[str, Any]) -> Named:
    """The tensors of one recurrent layer, but for its norms and its MLP."""
    assert dims.recurrent is not None
    yield from TENSORS[dims.recurrent.kind](prefix, dims.hidden_size, dims.recurrent, table)


def _convolution(name: str, kind: Recurrent, table: Mapping[str, Any]) -> Named:
    """[channels, 1, kernel] as transformers stores it, or [channels, kernel, 1] as mlx-lm does."""
    mlx = [kind.channels, kind.kernel, 1]
    yield f"{name}.weight", mlx if table.get(f"{name}.weight", {}).get("shape") == mlx else [kind.channels, 1, kind.kernel]
    if kind.conv_bias:
        yield f"{name}.bias", [kind.channels]


def _projection(name: str, rows: int, columns: int, bias: bool = False) -> Named:
    yield f"{name}.weight", [rows, columns]
    if bias:
        yield f"{name}.bias", [rows]


def _short_convolution(prefix: str, d: int, kind: Recurrent, table: Mapping[str, Any]) -> Named:
    yield from _projection(f"{prefix}conv.in_proj", 3 * d, d, kind.bias)
    yield from _convolution(f"{prefix}conv.conv", kind, table)
    yield from _projection(f"{prefix}conv.out_proj", d, d, kind.bias)


def _delta_net(prefix: str, d: int, kind: Recurrent, table: Mapping[str, Any]) -> Named:
    name, outputs = f"{prefix}linear_attn.", kind.heads * kind.value
    parts = {"qkv": kind.channels, "z": outputs, "b": kind.heads, "a": kind.heads}
    if kind.kind == "joined_delta":
        parts = {"qkvz": kind.channels + outputs, "ba": 2 * kind.heads}
    for part, rows in parts.items():
        yield from _projection(f"{name}in_proj_{part}", rows, d)
    yield from _convolution(f"{name}conv1d", kind, table)
    yield f"{name}A_log", [kind.heads]
    yield f"{name}dt_bias", [kind.heads]
    yield f"{name}norm.weight", [kind.value]
    yield from _projection(f"{name}out_proj", d, outputs)


def _mamba(prefix: str, d: int, kind: Recurrent, table: Mapping[str, Any]) -> Named:
    name, inner = f"{prefix}{kind.place}.", kind.heads * kind.value
    yield from _projection(f"{name}in_proj", inner + kind.channels + kind.heads, d, kind.bias)
    yield from _convolution(f"{name}conv1d", kind, table)
    for part in ("A_log", "D", "dt_bias"):
        yield f"{name}{part}", [kind.heads]
    yield f"{name}norm.weight", [inner]
    yield from _projection(f"{name}out_proj", d, inner, kind.bias)


TENSORS = {"conv": _short_convolution, "delta": _delta_net, "joined_delta": _delta_net, "mamba": _mamba}
