"""`OneByOne`: a Batch of decoders that know nothing of each other, for models that cannot be decoded side by side.
Called by `mtpd serve` and `mtpd-onnx serve`.

Rows that have a turn in a round run one after the other, so nothing is gained but fairness.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mtpd_mlx.speculative.batch import Turn, check_turns
from mtpd_mlx.speculative.finite import NO_TOKEN, NotFiniteError
from mtpd_mlx.speculative.loop import advance
from mtpd_mlx.speculative.protocol import Backend, Renews, Round
from mtpd_mlx.speculative.round_costs import PLAIN, Kind
from mtpd_mlx.speculative.sampling import Sampling
from mtpd_mlx.speculative.saved import Saved, load_into, save_from


@dataclass
class _Row:
    sampling: Sampling
    backend: Backend


class OneByOne:
    """`open_decoder`: a new decoder with an empty text, that samples so. A turn has the drafts that its decoder chooses."""

    regular = True

    def __init__(self, open_decoder: Callable[[Sampling], Backend], max_rows: int, max_together: int = 1):
        self._open, self._rows = open_decoder, dict[int, _Row]()
        self.max_rows, self.max_together = max_rows, max_together
        self._spare: _Row | None = _Row(Sampling(), open_decoder(Sampling()))  # what cannot be opened is told at once
        self.num_draft_tokens, self.capacity = self._spare.backend.num_draft_tokens, self._spare.backend.capacity

    def join(self, sampling: Sampling) -> int:
        if len(self._rows) >= self.max_rows:
            raise ValueError(f"join: {self.max_rows} rows are taken, expected a free one")
        row = next(i for i in range(self.max_rows) if i not in self._rows)
        spare, self._spare = self._spare, None
        usable = spare is not None and same_text(spare.sampling, sampling)
        self._rows[row] = spare if usable and spare is not None else _Row(sampling, self._open(sampling))
        return row

    def restart(self, row: int, sampling: Sampling, length: int) -> int:
        if same_text(self._rows[row].sampling, sampling):
            backend = self._rows[row].backend
            if sampling.greedy or not length:
                backend.rewind_to(length)
                return length
            kept = length if isinstance(backend, Renews) else 0  # the same numbers would make the same text of the same prompt
            backend.rewind_to(kept)
            if kept and isinstance(backend, Renews):
                backend.renew()
            return kept
        del self._rows[row]
        self._rows[row] = _Row(sampling, self._open(sampling))
        return 0

    def length(self, row: int) -> int:
        return self._rows[row].backend.length

    def prefill(self, row: int, tokens: Sequence[int]) -> int:
        return self._rows[row].backend.prefill(tokens)

    def round(self, turns: Sequence[Turn]) -> list[Round]:
        check_turns(turns, self._rows, self.max_together)
        return [self._turn(turn) for turn in turns]

    def _turn(self, turn: Turn) -> Round:
        try:
            chunk = advance(self._rows[turn.row].backend, turn.token)
        except NotFiniteError:
            return Round([NO_TOKEN], 0, 0, source="plain")
        return chunk.round or Round(chunk.tokens, 0, 0, source="plain")

    def costs(self, rows: int) -> dict[Kind, float]:
        return {PLAIN: 1.0}

    def alone(self, row: int) -> Backend:
        return self._rows[row].backend

    def rewind_to(self, row: int, length: int) -> None:
        self._rows[row].backend.rewind_to(length)

    def save(self, row: int) -> Saved | None:
        return save_from(self._rows[row].backend)

    def load(self, row: int, saved: Saved, length: int) -> int:
        return load_into(self._rows[row].backend, saved, length, self._rows[row].sampling)

    def leave(self, row: int) -> None:
        del self._rows[row]

    def check(self) -> None:
        for row, held in self._rows.items():
            if not 0 <= held.backend.length <= self.capacity:
                raise RuntimeError(f"row {row}: got {held.backend.length} positions, expected 0..{self.capacity}")


def same_text(a: Sampling, b: Sampling) -> bool:
    """A decoder that samples as `a` does can go on with a text that is sampled as `b` says. A seeded text begins afresh, so
    that it is the same one every time."""
    return (a.greedy and b.greedy) or (a == b and b.seed is None)
