"""`Reach`: whether a text can go on where it was cut, or has to be read again because its state is behind more positions.

Called by the backends of one text. graphs/delta.py says what is kept.
"""

from collections.abc import Callable, Sequence

from mtpd_onnx.manifest import Manifest
from mtpd_onnx.runtime import limits

NOWHERE = 1 << 62


class Reach:
    """`_anchor`: the state is behind so many positions, at most."""

    def __init__(self, manifest: Manifest):
        self._rows, self._anchor = manifest.reach, 0

    @property
    def limited(self) -> bool:
        """Whether there is a state that cannot be cut."""
        return self._rows is not None

    def before_run(self, past: int, count: int) -> None:
        """A run of `count` positions from `past` on begins. It may be interrupted: then the text still ends at `past`."""
        if self._rows is not None:
            self._anchor = past + max(0, count - self._rows)

    def restore(self, tokens: Sequence[int], run: Callable[[int, Sequence[int]], object]) -> None:
        """Before a run behind `tokens`: where the state is beyond their end, they are read again. run(past, chunk) reads."""
        if self._rows is None or not tokens or len(tokens) >= self._anchor:
            return
        self._anchor = NOWHERE  # should it be interrupted, all is read again
        size = limits.PREFILL_CHUNK
        for start in range(0, len(tokens), size):
            run(start, tokens[start : start + size])
        self.before_run(start, len(tokens) - start)
