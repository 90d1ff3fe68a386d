"""`AloneElsewhere`: rows of a batch on a device, of which the one that is alone is decoded by replayed rounds.

Texts side by side are not replayed as CUDA graphs, which would take a text that is alone twice the time and more. So that one
goes on in a decoder of one text (runtime/device_rounds.py), and comes home before others join it: what the other side has not
seen is prefilled there. runtime/open_rows.py makes it.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

from mtpd_mlx.speculative.batch import Turn
from mtpd_mlx.speculative.protocol import Backend, Round
from mtpd_mlx.speculative.round_costs import Kind
from mtpd_mlx.speculative.sampling import Sampling
from mtpd_mlx.speculative.saved import Saved
from mtpd_onnx.runtime.batch import OnnxBatch


class Lone(Backend, Protocol):
    """A decoder of one text. tokens: what it has cached."""

    @property
    def tokens(self) -> Sequence[int]: ...

    def sample_as(self, sampling: Sampling) -> None:
        """The next text is sampled so."""
        ...


class AloneElsewhere:
    """A Batch. `open_lone(sampled)`: a decoder for greedy texts, opened at once, or one for those sampled in any way, opened
    when one is wanted. Texts with a seed stay where they are: who is decoded beside them must not change them."""

    def __init__(self, rows: OnnxBatch, open_lone: Callable[[bool], Lone]):
        self._rows, self._open = rows, open_lone
        self._lone = {False: open_lone(False)}
        self._away: dict[int, Lone] = {}
        self._samplings: dict[int, Sampling] = {}
        self.max_rows, self.max_together, self.capacity = rows.max_rows, rows.max_together, rows.capacity
        self.num_draft_tokens, self.regular, self.costs_key = rows.num_draft_tokens, True, rows.costs_key

    def join(self, sampling: Sampling) -> int:
        row = self._rows.join(sampling)
        self._samplings[row] = sampling
        return row

    def restart(self, row: int, sampling: Sampling, length: int) -> int:
        self._come_home(row)
        self._samplings[row] = sampling
        return self._rows.restart(row, sampling, length)

    def length(self, row: int) -> int:
        return self._away[row].length if row in self._away else self._rows.length(row)

    def prefill(self, row: int, tokens: Sequence[int]) -> int:
        self._come_home(row)
        return self._rows.prefill(row, tokens)

    def round(self, turns: Sequence[Turn]) -> list[Round]:
        for turn in turns:
            self._come_home(turn.row)
        rounds = self._rows.round(turns)
        self.regular = self._rows.regular
        return rounds

    def costs(self, rows: int) -> dict[Kind, float]:
        return self._rows.costs(rows)

    def alone(self, row: int) -> Backend:
        sampling, line = self._samplings[row], self._rows.alone(row)
        if row in self._away:
            return self._away[row]
        if sampling.seed is not None and not sampling.greedy:
            return line
        for other in list(self._away):
            self._come_home(other)
        lone, text = self._decoder(not sampling.greedy), list(line.tokens)
        if sampling.greedy:
            kept = common(lone.tokens, text)
        else:  # random numbers of another text would make this one like it
            kept = 0
            lone.sample_as(sampling)
        lone.rewind_to(kept)
        if kept < len(text):
            lone.prefill(text[kept:])
        self._away[row] = lone
        return lone

    def _decoder(self, sampled: bool) -> Lone:
        if sampled not in self._lone:
            self._lone[sampled] = self._open(sampled)
        return self._lone[sampled]

    def _come_home(self, row: int) -> None:
        """The row's line has its text again."""
        if (lone := self._away.pop(row, None)) is None:
            return
        text = list(lone.tokens)
        kept = common(self._rows.alone(row).tokens, text)
        self._rows.rewind_to(row, kept)
        if kept < len(text):
            self._rows.prefill(row, text[kept:])

    def rewind_to(self, row: int, length: int) -> None:
        if row in self._away:
            self._away[row].rewind_to(length)
        else:
            self._rows.rewind_to(row, length)

    def leave(self, row: int) -> None:
        self._away.pop(row, None)
        del self._samplings[row]
        self._rows.leave(row)

    def save(self, row: int) -> Saved | None:
        self._come_home(row)
        return self._rows.save(row)

    def load(self, row: int, saved: Saved, length: int) -> int:
        self._come_home(row)
        return self._rows.load(row, saved, length)

    def check(self) -> None:
        for row, lone in self._away.items():
            if not 0 <= lone.length <= self.capacity:
                raise RuntimeError(f"row {row}: got {lone.length} positions, expected 0..{self.capacity}")
        self._rows.check()


def common(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common beginning."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
