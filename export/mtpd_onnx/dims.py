"""What the graphs need to know of a base, read from its Hugging Face config.json as the MLX side reads it."""

from pathlib import Path

from mtpd_mlx.families import config as families
from mtpd_mlx.families.dims import Dims
from mtpd_mlx.families.rotary import rope_type

__all__ = ["Dims", "read_dims", "rope_type"]

ROPE_TYPES = ("default", "linear", "llama3", "yarn", "longrope", "su")


def read_dims(folder: Path, tied: bool | None = None) -> Dims:
    """Reads `folder`/config.json; a family or feature that the graphs cannot express is refused in one line.

    `tied`: whether the weights have no output head of their own, where config.json does not say.
    """
    config = families.read_config_json(folder)
    try:
        dims = families.read_dims(config, tied)
        _check_expressible(dims)
    except ValueError as error:
        raise ValueError(f"ONNX export: {folder}: {error}") from error
    method = (config.get("quantization_config") or {}).get("quant_method")
    if "quantization" not in config and method is not None:
        raise ValueError(f"ONNX export: weights quantised by {method!r} are not supported; supported: MLX affine")
    return dims


def _check_expressible(dims: Dims) -> None:
    kind = rope_type(dims.rope_scaling)
    if kind not in ROPE_TYPES:
        raise ValueError(f"rope scaling {kind!r} is not supported; supported: {', '.join(ROPE_TYPES)}")
    if dims.rotary_dim < dims.head_dim and dims.rotary_dim % 16:
        raise ValueError(f"{dims.rotary_dim} rotated dimensions of {dims.head_dim}: expected all, or a multiple of 16")
