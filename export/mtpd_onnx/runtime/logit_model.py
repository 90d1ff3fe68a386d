"""`PlainLogits`: the graphs of a folder as a LogitModel. The host reads the logits of every row.
Called by runtime/bound.py."""

from collections.abc import Callable, Sequence

import numpy as np

from mtpd_onnx.runtime.plain import PlainBackend
from mtpd_onnx.runtime.saved_text import SavedText, kind_of, read_rows, write_rows


class PlainLogits:
    """The main model alone (plain.onnx): there are no heads to draft with, and `draft` is never called."""

    num_draft_tokens = 0

    def __init__(self, backend: PlainBackend):
        self._backend, self.capacity, self.provider = backend, backend.capacity, backend.provider
        self._before = 0

    @property
    def length(self) -> int:
        return self._backend.length

    def prefill(self, tokens: Sequence[int]) -> np.ndarray:
        if len(tokens) > 1:
            self._backend.prefill(tokens[:-1])
        return self._backend.logits(tokens[-1:])

    def run(self, tokens: Sequence[int]) -> np.ndarray:
        self._before = self.length
        return self._backend.logits(tokens)

    def keep(self, count: int) -> None:
        self._backend.rewind_to(self._before + count)

    @property
    def saved_kind(self) -> str:
        return kind_of(False) if self.provider == "cpu" else ""

    def save(self) -> SavedText | None:
        """A copy of the text's caches (speculative/saved.py)."""
        if not self.length or self.provider != "cpu" or self._backend.reach.limited:
            return None
        return SavedText(self._backend.tokens, read_rows(self._backend.caches, self.length))

    def load(self, saved: SavedText, length: int) -> None:
        """The text is the first `length` positions of what was saved."""
        write_rows(self._backend.caches, saved.rows, length)
        self._backend.go_on(saved.tokens[:length])

    def draft(self, count: int, token: int, choose: Callable[[np.ndarray], int | None]) -> None:
        raise AssertionError("no heads")

    def rewind_to(self, length: int) -> None:
        self._backend.rewind_to(length)
