"""A Base of a model that mlx_lm has loaded."""

from dataclasses import asdict
from typing import Any

from mtpd_mlx.model.base import Base, check_supported


def wrapped_base(model: Any) -> Base:
    """ValueError in one line where the adapter does not know this kind of model."""
    if not hasattr(model, "args") or not hasattr(model, "model"):
        raise ValueError(f"model: got {type(model).__name__}, expected what mlx_lm.load gives")
    config = asdict(model.args) | {"model_type": model.model_type}
    check_supported(config)
    return Base(model, config, None)
