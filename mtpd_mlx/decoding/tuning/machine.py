"""`machine_key`: the key of stored tuning results, which are valid for the same device, MLX version and dtype only.
Called by `mtpd tune`, `bench`, `probe`, `doctor` and whoever reads tuned entries."""

from importlib.metadata import version
from typing import Any

from mtpd_mlx.decoding.tuning.choice import size
from mtpd_mlx.files.measured import processor
from mtpd_mlx.model.base import Base
from mtpd_mlx.model.heads import MTPHeads
from mtpd_mlx.model.runtime import mx, on_cpu, on_cuda
from mtpd_mlx.options.decode import DecodingConfig


def device_kind() -> str:
    """ "cpu", "cuda" or "metal"."""
    return "cpu" if on_cpu() else "cuda" if on_cuda() else "metal"


def device_name() -> str:
    """The device that MLX computes on, as its maker calls it."""
    if on_cpu():
        return processor()
    info: dict[str, Any] = dict(mx.device_info())
    return str(info.get("device_name") or info.get("architecture") or device_kind())


def machine_key(dtype: mx.Dtype) -> str:
    """Under which `mtpd tune` stores its choice: device and the type that the model is held in."""
    return f"{device_kind()}: {device_name()}, {str(dtype).removeprefix('mlx.core.')}"


def costs_key(base: Base, heads: MTPHeads | None, options: DecodingConfig, *, lookup: bool, sampled: bool) -> str:
    """Under which the costs of rounds are stored: all that they depend on. Models of one shape cost alike."""
    dims = base.dims
    shape = f"{dims.model_type} {len(dims.layers)} x {dims.hidden_size}, {size(base.model)} bytes"
    drafts = 0 if heads is None or heads.draft_tokens is None else heads.draft_tokens.size
    own = "no heads" if heads is None else f"{heads.num_heads} heads, {drafts or 'all'} tokens"
    how = f"plan {options.plan}, {'lookup' if lookup else 'no lookup'}, {'sampled' if sampled else 'greedy'}"
    how += ", windows" if options.windows and any(layer.window for layer in dims.layers) else ""
    return f"{machine_key(base.dtype)}, MLX {version('mlx')}; {shape}; {own}; {how}"
