"""`BoundRows`: rows of texts that are bound by grammars, each decoded by itself, beside the rows of a Batch.
Called by the server's scheduler.

A decoder is opened when the first text needs one.
"""

from collections.abc import Callable, Sequence

from mtpd_mlx.speculative.constrained import ConstrainedBackend, Constraint
from mtpd_mlx.speculative.logprobs import Logprobs
from mtpd_mlx.speculative.one_by_one import same_text
from mtpd_mlx.speculative.sampling import Sampling
from mtpd_mlx.speculative.saved import Saved, load_into, save_from


class BoundRows:
    """`open_decoder`: a new decoder with an empty text, that samples so. max_rows: texts that are held at a time."""

    def __init__(self, open_decoder: Callable[[Sampling], ConstrainedBackend], max_rows: int, capacity: int):
        self._open, self.max_rows, self.capacity = open_decoder, max_rows, capacity
        self._rows = dict[int, tuple[Sampling, ConstrainedBackend]]()

    def join(self, sampling: Sampling, constraint: Constraint, logprobs: Logprobs | None = None) -> int:
        """An empty text; the number of its row. ValueError where max_rows are taken. logprobs: sees the text."""
        if len(self._rows) >= self.max_rows:
            raise ValueError(f"join: {self.max_rows} rows are taken, expected a free one")
        row = next(i for i in range(self.max_rows) if i not in self._rows)
        self._rows[row] = sampling, self._open(sampling)
        self.alone(row).bind(constraint, logprobs)
        return row

    def restart(
        self, row: int, sampling: Sampling, constraint: Constraint, length: int, logprobs: Logprobs | None = None
    ) -> int:
        """Another text takes the row over, that has the first `length` positions in common with the one there; how many of them
        it keeps."""
        known, backend = self._rows[row]
        if same_text(known, sampling):
            backend.rewind_to(length)
        else:
            del self._rows[row]
            backend, length = self._open(sampling), 0
            self._rows[row] = sampling, backend
        backend.bind(constraint, logprobs)
        return length

    def alone(self, row: int) -> ConstrainedBackend:
        return self._rows[row][1]

    def length(self, row: int) -> int:
        return self.alone(row).length

    def prefill(self, row: int, tokens: Sequence[int]) -> int:
        return self.alone(row).prefill(tokens)

    def rewind_to(self, row: int, length: int) -> None:
        self.alone(row).rewind_to(length)

    def save(self, row: int) -> Saved | None:
        return save_from(self.alone(row))

    def load(self, row: int, saved: Saved, length: int) -> int:
        sampling, backend = self._rows[row]
        return load_into(backend, saved, length, sampling)

    def leave(self, row: int) -> None:
        del self._rows[row]

    def check(self) -> None:
        """RuntimeError where a text and its caches are not of one length."""
        for row, (_, backend) in self._rows.items():
            if backend.length != len(backend.tokens):
                raise RuntimeError(f"bound row {row}: got {backend.length} positions, expected {len(backend.tokens)}")
