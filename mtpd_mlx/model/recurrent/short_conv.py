"""`ShortConv`: LFM2's gated short convolution over a RecurrentCache or a GraphState.
Called by model/recurrent/mixers.py."""

from typing import Any

from mtpd_mlx.model.recurrent.cache import Arrays, RecurrentCache
from mtpd_mlx.model.recurrent.convolution import convolve, next_window
from mtpd_mlx.model.recurrent.graph_state import GraphState, Keep, window_at
from mtpd_mlx.model.runtime import mx


class ShortConv:
    """y = C * conv(B * x), with [B, C, x] = W_in h. State: the last k - 1 rows of B * x. Goes before mlx-lm's ShortConv."""

    num_states = 1
    in_proj: Any
    conv: Any
    out_proj: Any

    def __call__(self, x: mx.array, mask: Any = None, cache: Any = None) -> mx.array:
        """x [B, T, d] -> [B, T, d]."""
        if not isinstance(cache, RecurrentCache | GraphState):
            return super().__call__(x, mask, cache)  # type: ignore[misc]
        before, after, rows = mx.split(self.in_proj(x), 3, axis=-1)
        return self.out_proj(after * cache.run((before * rows,)))

    def advance(self, inputs: Arrays, state: Arrays) -> tuple[mx.array, Arrays]:
        y, seen = convolve(inputs[0], state[0] if state else None, self.conv)
        return y, (next_window(seen, y.shape[1]),)

    def steps(self, inputs: Arrays, state: Arrays) -> tuple[mx.array, Keep]:
        """As GraphState takes it."""
        y, seen = convolve(inputs[0], state[0], self.conv)
        return y, lambda last: (window_at(seen, last, state[0].shape[1]),)
