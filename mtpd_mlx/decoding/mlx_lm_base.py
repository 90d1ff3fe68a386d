"""`wrapped_base`: a Base made of a model that mlx_lm has loaded.
Called by decoding/mlx_lm_draft.py."""

import copy
from dataclasses import asdict
from typing import Any

from mtpd_mlx.families.config import read_dims
from mtpd_mlx.model.base import Base, check_supported


def wrapped_base(model: Any) -> Base:
    """ValueError in one line where the adapter does not know this kind of model. `model` stays as it is."""
    if not hasattr(model, "args") or not hasattr(model, "model"):
        raise ValueError(f"model: got {type(model).__name__}, expected what mlx_lm.load gives")
    config = asdict(model.args) | {"model_type": model.model_type}
    check_supported(config)
    if read_dims(config).recurrent is not None:
        raise ValueError(f"model: stock mlx_lm cannot take back the recurrent state of {model.model_type}; mtpd generate can")
    return Base(_own_modules(model), config, None)


def _own_modules(model: Any) -> Any:
    """The same weights under modules of our own, as far as a Base changes them (it sets the rotation of each block)."""
    whole, inner = copy.copy(model), copy.copy(model.model)
    inner.layers = [copy.copy(block) for block in inner.layers]
    for block in inner.layers:
        block.self_attn = copy.copy(block.self_attn)
    whole.model = inner
    return whole
