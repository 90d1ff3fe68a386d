"""`GraphState`: a recurrent layer's state inside a graph that decides itself how many positions of a pass stay.

Called by the layers of mixers.py and by decoding/fixed_buffers.py. What RecurrentCache does for a host that knows the number.
"""

from collections.abc import Callable

from mtpd_mlx.model.recurrent.cache import Arrays
from mtpd_mlx.model.runtime import mx

Keep = Callable[[mx.array], Arrays]  # int32 [], the last position of the pass that stays (0: the first) -> the state behind it
Steps = Callable[[Arrays, Arrays], tuple[mx.array, Keep]]
"""(inputs [1, n, ..], state before them) -> (outputs [1, n, ..], the state behind any of them)."""


class GraphState:
    """`state` before the pass; `keep` behind it."""

    def __init__(self, steps: Steps, state: Arrays):
        self._steps, self.state = steps, state
        self._keep: Keep | None = None

    def run(self, inputs: Arrays) -> mx.array:
        """Once: inputs [1, n, ..] -> outputs [1, n, ..]."""
        y, self._keep = self._steps(inputs, self.state)
        return y

    def keep(self, last: mx.array) -> Arrays:
        assert self._keep is not None
        return self._keep(last)

    def make_mask(self, N: int) -> None:
        """As of a RecurrentCache."""


def window_at(seen: mx.array, last: mx.array, rows: int) -> mx.array:
    """seen [1, rows + n, C]: a convolution's window and n positions behind it -> [1, rows, C], its window behind `last`."""
    return mx.slice(seen, last[None] + 1, (1,), (1, rows, seen.shape[2]))


def state_at(states: list[mx.array], last: mx.array) -> mx.array:
    """states: behind each of n positions -> behind `last`."""
    found = states[0]
    for i, state in enumerate(states[1:], start=1):
        found = mx.where(last >= i, state, found)
    return found
