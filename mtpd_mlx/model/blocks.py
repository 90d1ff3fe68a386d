"""`call_block`, `make_rope`, `make_mask`: mlx-lm's decoder blocks, called alike whatever their family.
Called by model/base.py, model/heads.py and decoding/rows_cache.py.

Rotation and windows come from Dims, so that MLX and ONNX graphs cannot disagree about a config.json. Caches of sliding layers
are those of window_cache.py, or whole ones behind a mask: mlx-lm's rotating ones cannot rewind.
"""

import inspect
from collections.abc import Callable
from functools import cache as memoised
from typing import Any

from mtpd_mlx.families.dims import Dims, Layer
from mtpd_mlx.families.rotary import longrope_magnitude, rope_type, yarn_periods
from mtpd_mlx.model.recurrent.pairs import PairedBlock
from mtpd_mlx.model.runtime import mx, nn


def adapt_block(block: nn.Module, dims: Dims, layer: Layer) -> None:
    """Gives a block of mlx-lm what `dims` says where its module would guess: rotation, the activation of its experts."""
    if "self_attn" in block:
        block.self_attn.rope = make_rope(dims, layer)
    if layer.experts and dims.experts is not None and dims.experts.clip is not None:
        from mlx_lm.models.activations import SwigluOAI

        getattr(block.mlp, dims.experts.stacked).activation = SwigluOAI(*dims.experts.clip)


def attention_block(block_type: Any, arguments: Any, dims: Dims) -> nn.Module:
    """A new block of the kind of the base's last layer that attends."""
    asked = inspect.signature(block_type.__init__).parameters
    if "block_type" in asked:  # Nemotron-H
        return PairedBlock(block_type(arguments, "*"), block_type(arguments, "E" if dims.head_layer.experts else "-"))
    if "layer_type" in asked:  # Granite 4
        return block_type(arguments, "attention")
    return block_type(arguments, layer_idx=dims.last_attention) if "layer_idx" in asked else block_type(arguments)


def make_rope(dims: Dims, layer: Layer) -> nn.Module:
    """The rotary embedding of one kind of layer."""
    from mlx_lm.models.rope_utils import SuScaledRoPE, initialize_rope
    from mlx_lm.models.smollm3 import NoPE

    size = dims.geometry(layer).rotary_dim
    if layer.rope == "none":
        return NoPE()
    if layer.rope == "local":
        return initialize_rope(size, dims.local_theta, False)
    scaling = dims.rope_scaling
    if scaling is not None and rope_type(scaling) in ("longrope", "su"):
        original = scaling["original_max_position_embeddings"]
        rope = SuScaledRoPE(
            size,
            dims.rope_theta,
            original_max_position_embeddings=original,
            long_factor=scaling["short_factor"],  # texts are kept to the original length (Dims.context_length)
            long_mscale=longrope_magnitude(scaling),
        )
    else:
        rope = initialize_rope(size, dims.rope_theta, False, scaling, dims.context_length)
    if rope_type(scaling) == "yarn" and scaling is not None:
        if scaling.get("attention_factor") is not None:
            rope.mscale = float(scaling["attention_factor"])
        if scaling.get("truncate") is False:  # mlx-lm knows no other
            rope._freqs = mx.array(yarn_periods(dims.rope_theta, size, scaling))
    return rope


@memoised  # asked for every block of every pass
def needs_arrays(block_type: Any) -> bool:
    """Gemma 2's attention (soft-capped) takes masks as arrays alone."""
    return str(getattr(block_type, "__module__", "")).endswith(".gemma2")


def make_mask(length: int, cache: Any, window: int | None, arrays: bool = False) -> Any:
    """The causal mask of `length` new rows behind what `cache` holds: None, "causal", or bool [.., length, cached + length]."""
    from mlx_lm.models.base import create_causal_mask

    offset = 0 if cache is None else cache.offset
    if isinstance(offset, int) and window is not None and offset + length <= window:
        window = None
    if cache is not None:
        return cache.make_mask(length, return_array=arrays, window_size=window)
    if arrays or window is not None:
        return create_causal_mask(length, window_size=window)
    return "causal" if length > 1 else None


def call_block(block: nn.Module, hidden: mx.array, mask: Any, cache: Any = None) -> mx.array:
    """hidden [B, T, d] -> [B, T, d]. `mask` "causal" becomes an array where the block needs one."""
    if needs_arrays(type(block)):
        if isinstance(mask, str):
            mask = make_mask(hidden.shape[1], cache, None, arrays=True)
        if mask is not None and mask.ndim == 4:
            mask = mask[:, None]  # its scores are [B, key heads, query heads of each, T, cached]
    out = block(hidden, mask=mask, cache=cache)
    return out[0] if isinstance(out, tuple) else out  # Gemma 4's pass their keys and values on to layers that share them


def recomputed(block: nn.Module) -> Callable[..., mx.array]:
    """The block, keeping only its input for the backward pass (gradient checkpointing)."""

    def call(hidden: mx.array, mask: Any, cache: Any = None) -> mx.array:
        def inner(params: dict[str, Any], hidden: mx.array) -> mx.array:
            block.update(params)
            return call_block(block, hidden, mask, cache)

        return mx.checkpoint(inner)(block.trainable_parameters(), hidden)

    return call
