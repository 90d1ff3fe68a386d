"""`RecurrentCache`: what a recurrent layer remembers of one text, and the way back to where it was some positions ago.

A recurrence cannot be cut like keys and values. So the cache keeps what the layer's recurrence was given at the last HELD
positions, and states from which these lead on. Going back runs the same operation again over what stays: for a convolution a
slice, for a recurrence a few steps. No weights of projections are read again. Made by Base.make_cache; called by the layers in
mixers.py and by decoding/rewind.py.
"""

from collections import deque
from collections.abc import Callable, Iterable

from mtpd_mlx.families.dims import HELD
from mtpd_mlx.model.runtime import mx

Arrays = tuple[mx.array, ...]
Advance = Callable[[Arrays, Arrays], tuple[mx.array, Arrays]]
"""(inputs [1, n, ..] of n positions, state before them, () at the start) -> (outputs [1, n, ..], state behind them)."""


class RecurrentCache:
    """Batch 1. `offset`: positions read. `state`: behind them; () before the first. Nothing here is evaluated."""

    def __init__(self, advance: Advance):
        self._advance = advance
        self.restore(0, ())

    def restore(self, offset: int, state: Arrays, inputs: Arrays = ()) -> None:
        """Goes on behind `offset` positions, of which none can be taken back, and then over `inputs`, all of which can."""
        self.offset, self.state = offset, state
        self._anchors: list[tuple[int, Arrays]] = []  # a position and the state before it; the last one: before the last pass
        self._inputs: deque[tuple[int, Arrays]] = deque()  # first position and inputs of each pass from the first anchor on
        if inputs:
            self._advance_over(inputs)

    def run(self, inputs: Arrays) -> mx.array:
        """The recurrence's outputs [1, n, ..] for the next n positions, whose inputs [1, n, ..] these are."""
        beyond = inputs[0].shape[1] - HELD
        if beyond <= 0:
            return self._advance_over(inputs)
        first, state = self._advance(_rows(inputs, 0, beyond), self.state)  # of a long pass only the end can be taken back
        self.restore(self.offset + beyond, state)
        end = tuple(mx.contiguous(x) for x in _rows(inputs, beyond))  # copies, so that the rest can be freed
        return mx.concatenate([first, self._advance_over(end)], axis=1)

    @property
    def reach(self) -> int:
        """The smallest length that `trim` can go back to."""
        return self._anchors[0][0] if self._anchors else self.offset

    def trim(self, n: int) -> int:
        """Takes the last n positions back, as if they had never been read. ValueError beyond `reach`."""
        length = self.offset - n
        if not self.reach <= length <= self.offset:
            raise ValueError(f"recurrent state: cannot go back to {length} positions, expected {self.reach}..{self.offset}")
        if n:
            while self._anchors[-1][0] > length:
                self._anchors.pop()
            start, state = self._anchors[-1]
            self._cut_inputs(length)
            again = _joined(inputs for first, inputs in self._inputs if first >= start)
            self.offset, self.state = length, self._advance(again, state)[1] if again else state
        return n

    def journal(self) -> tuple[int, Arrays, Arrays]:
        """What `restore` takes to come to the same state with the same reach: offset, state and inputs."""
        if not self._anchors:
            return self.offset, self.state, ()
        return *self._anchors[0], _joined(inputs for _, inputs in self._inputs)

    def make_mask(self, N: int) -> None:
        """A recurrence sees what came before alone (mlx-lm asks for masks of left-padded batches)."""

    def is_trimmable(self) -> bool:
        return True

    @property
    def nbytes(self) -> int:
        return sum(x.nbytes for x in {id(x): x for x in self.arrays}.values())

    @property
    def arrays(self) -> list[mx.array]:
        """All that is held: what to evaluate behind a long pass, so that nothing else of it stays in memory."""
        held = [self.state, *(state for _, state in self._anchors), *(inputs for _, inputs in self._inputs)]
        return [x for arrays in held for x in arrays]

    def _advance_over(self, inputs: Arrays) -> mx.array:
        """States are kept HELD positions apart, from the last one on that is so far back, and before the last pass."""
        if len(self._anchors) > 1 and self._anchors[-1][0] - self._anchors[-2][0] < HELD:
            self._anchors.pop()
        self._anchors.append((self.offset, self.state))
        self._inputs.append((self.offset, inputs))
        y, self.state = self._advance(inputs, self.state)
        self.offset += inputs[0].shape[1]
        while len(self._anchors) > 1 and self._anchors[1][0] <= self.offset - HELD:
            self._anchors.pop(0)
        while self._inputs[0][0] < self._anchors[0][0]:
            self._inputs.popleft()
        return y

    def _cut_inputs(self, length: int) -> None:
        while self._inputs and self._inputs[-1][0] >= length:
            self._inputs.pop()
        if self._inputs:
            start, inputs = self._inputs[-1]
            self._inputs[-1] = start, _rows(inputs, 0, length - start)


def _rows(arrays: Arrays, start: int, end: int | None = None) -> Arrays:
    return tuple(x[:, start:end] for x in arrays)


def _joined(passes: Iterable[Arrays]) -> Arrays:
    """Inputs of consecutive passes as one; () of none."""
    held = list(passes)
    return held[0] if len(held) == 1 else tuple(mx.concatenate(list(parts), axis=1) for parts in zip(*held, strict=True))
