"""`adopt`: mlx-lm's recurrent layers with a rewind of their own.
Called by model/base.py and decoding/fixed_buffers.py.

Each of ours goes before mlx-lm's class: the parameters and their names stay. With a RecurrentCache it runs the recurrence
through it; without, the layer is mlx-lm's (training, and batches with left padding).
"""

import copy
from functools import cache as memoised
from typing import Any

from mtpd_mlx.families.dims import Recurrent
from mtpd_mlx.model.recurrent.cache import RecurrentCache
from mtpd_mlx.model.recurrent.delta_net import DeltaNet, JoinedDeltaNet
from mtpd_mlx.model.recurrent.mamba import GroupedNorm, Mamba2
from mtpd_mlx.model.recurrent.short_conv import ShortConv
from mtpd_mlx.model.runtime import nn

PLACES = ("conv", "linear_attn", "mamba", "mixer")  # what blocks call their recurrent layer
OURS: dict[str, type] = {  # by the name of mlx-lm's class
    "ShortConv": ShortConv,
    "GatedDeltaNet": DeltaNet,
    "Qwen3NextGatedDeltaNet": JoinedDeltaNet,
    "GraniteMoeHybridMamba2Mixer": Mamba2,
    "NemotronHMamba2Mixer": Mamba2,
}


def adopt(block: nn.Module, recurrent: Recurrent | None) -> None:
    """Puts our layer in the place of mlx-lm's; blocks without a recurrence stay as they are."""
    for place in PLACES:
        if place in block and (ours := OURS.get(type(block[place]).__name__)) is not None:
            layer = copy.copy(block[place])
            if not isinstance(layer, ours):
                layer.__class__ = _before(ours, type(layer))  # type: ignore[arg-type]
            if isinstance(layer, Mamba2) and recurrent is not None and not isinstance(layer.norm, GroupedNorm):
                layer.settle(recurrent)
            block[place] = layer


def mixer_of(block: nn.Module) -> Any | None:
    """Our recurrent layer of a block; None where it attends."""
    ours = tuple(OURS.values())
    return next((block[place] for place in PLACES if place in block and isinstance(block[place], ours)), None)


def is_stateless(block: nn.Module) -> bool:
    """Whether a block is an MLP alone."""
    return type(block).__name__ == "NemotronHBlock" and block.block_type not in ("M", "*")


def new_cache(mixer: Any) -> RecurrentCache:
    return RecurrentCache(mixer.advance)


def new_batch_cache(mixer: Any, padding: list[int]) -> Any:
    """mlx-lm's cache of a batch whose rows are padded on the left."""
    from mlx_lm.models.cache import ArraysCache

    return ArraysCache(mixer.num_states, left_padding=padding)


@memoised
def _before(ours: type, theirs: type) -> type:
    return type(theirs.__name__, (ours, theirs), {})
