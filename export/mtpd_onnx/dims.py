"""`read_dims`, `check_expressible`: a base's Dims, read as MLX reads them, and whether graphs can express it.
Called by export/, graphs/ and weights/."""

from pathlib import Path

from mtpd_mlx.families import config as families
from mtpd_mlx.families.dims import Dims
from mtpd_mlx.families.rotary import rope_type
from mtpd_mlx.families.table import FAMILIES

__all__ = ["Dims", "check_expressible", "has_state", "objection", "objection_on_cuda", "read_dims", "rope_type"]

ROPE_TYPES = ("default", "linear", "llama3", "yarn", "longrope", "su", "proportional")


def read_dims(folder: Path) -> Dims:
    """By `folder`/config.json alone; a family or feature that the graphs cannot express is refused in one line."""
    config = families.read_config_json(folder)
    try:
        dims = families.read_dims(config)
        check_expressible(dims)
    except ValueError as error:
        raise ValueError(f"ONNX export: {folder}: {error}") from error
    return dims


def objection(dims: Dims) -> str | None:
    """Why `mtpd export` refuses a base that MLX runs; None where it does not."""
    try:
        check_expressible(dims)
    except ValueError as error:
        return str(error)
    return None


def has_state(dims: Dims) -> bool:
    """Whether a text has a state that cannot be cut: graphs of one text at a time, on a CPU."""
    return dims.recurrent is not None and dims.recurrent.kind != "conv"


def objection_on_cuda(dims: Dims) -> str | None:
    """Why `mtpd export` refuses folders for CUDA of a base that it exports for CPUs; None where it does not."""
    return f"{dims.model_type}: recurrent state is expressed for CPUs alone" if has_state(dims) else None


def check_expressible(dims: Dims) -> None:
    """ValueError in one line for what MLX runs and the graphs do not."""
    if not FAMILIES[dims.model_type].onnx:
        raise ValueError(f"model_type {dims.model_type!r} runs with MLX alone: there are no ONNX graphs for it yet")
    if dims.experts is not None and dims.experts.parallel:
        raise ValueError(f"{dims.model_type}: experts beside a dense MLP are not supported")
    if dims.model_type == "lfm2_moe" and dims.experts is not None and not dims.experts.sigmoid:
        raise ValueError(f"{dims.model_type}: use_expert_bias false is not supported")
    settings = [dims.quantization or {}, *(v for v in (dims.quantization or {}).values() if isinstance(v, dict))]
    for mode in (own.get("mode", "affine") for own in settings):
        if mode not in ("affine", "mxfp4"):
            raise ValueError(f"quantization mode {mode!r} is not supported; supported: affine, mxfp4")
    kind = rope_type(dims.rope_scaling)
    if kind not in ROPE_TYPES:
        raise ValueError(f"rope scaling {kind!r} is not supported; supported: {', '.join(ROPE_TYPES)}")
    if dims.rotary_dim < dims.head_dim and dims.rotary_dim % 16:
        raise ValueError(f"{dims.rotary_dim} rotated dimensions of {dims.head_dim}: expected all, or a multiple of 16")
