"""What a graph of fixed shapes holds of each layer: buffers of keys and values, or recurrent state. To and from the caches of a
text. Called by fixed_rounds.py and by tuning/costs.py."""

from collections.abc import Sequence
from typing import Any

from mtpd_mlx.decoding.fixed_cache import FixedCache, Span, padded, to_fixed, to_growing
from mtpd_mlx.model.base import Base
from mtpd_mlx.model.recurrent.cache import Arrays, RecurrentCache
from mtpd_mlx.model.recurrent.graph_state import GraphState
from mtpd_mlx.model.recurrent.mixers import mixer_of, new_cache
from mtpd_mlx.model.runtime import mx


def to_buffers(caches: Sequence[Any], length: int, capacity: int) -> list[Arrays]:
    """Of caches that hold `length` positions >= 1."""
    return [c.state if isinstance(c, RecurrentCache) else to_fixed(c, length, capacity) for c in caches]


class Layers:
    """The layers of a base, and behind them `heads` that all attend. `windows`: as of Base.make_cache."""

    def __init__(self, base: Base, heads: int, windows: bool = False):
        self._mixers = [*(mixer_of(block) for block in base.layers), *[None] * heads]
        self._windows = [*(layer.window if windows else None for layer in base.dims.layers), *[None] * heads]

    def caches(self, buffers: Sequence[Any], span: Span, write: str, first: int = 0) -> list[Any]:
        """What layers `first`.. are called with."""
        mixers = self._mixers[first : first + len(buffers)]
        made = zip(buffers, mixers, strict=True)
        return [FixedCache(held, span, write) if mixer is None else GraphState(mixer.steps, held) for held, mixer in made]

    def padded(self, buffers: Sequence[Any], capacity: int) -> list[Any]:
        return [padded(x, capacity) if mixer is None else x for x, mixer in zip(buffers, self._mixers, strict=True)]

    def states(self, buffers: Sequence[Any]) -> list[Arrays]:
        """Those of recurrent layers."""
        return [x for x, mixer in zip(buffers, self._mixers, strict=True) if mixer is not None]

    def to_growing(self, buffers: Sequence[Any], states: Sequence[Arrays], length: int) -> list[Any]:
        """Caches of a text of `length` positions; `states`: of the recurrent layers behind them."""
        caches, left = [], list(states)
        for held, mixer, window in zip(buffers, self._mixers, self._windows, strict=True):
            cache = to_growing(held, length, window) if mixer is None else new_cache(mixer)
            if mixer is not None:
                cache.restore(length, left.pop(0))
            caches.append(cache)
        return caches


def kept(caches: Sequence[Any], last: mx.array) -> list[Any]:
    """The buffers behind a pass of which the positions up to `last` (0: the first) stay."""
    return [c.keep(last) if isinstance(c, GraphState) else c.rows for c in caches]
