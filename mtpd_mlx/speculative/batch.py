"""`Batch`: the protocol of texts decoded side by side, each in a row of its own.
Called by the server's scheduler; decoding/batch.py and mtpd_onnx/runtime/batch.py implement it.

    row = batch.join(sampling)
    token = batch.prefill(row, prompt)                    # in pieces, if need be, between other rows' rounds
    while ...:
        rounds = batch.round([Turn(row, token, 2), ...])  # any of the rows, in any order, each behind its own token
        token = rounds[0].emitted[-1]
        batch.rewind_to(row, length)                      # where the text ends inside of a round
    batch.leave(row)

A row's text is what it would be if it were decoded alone, whoever is decoded beside it: greedy texts token for token, sampled
ones in distribution, and with a seed token for token too where its turns leave the number of drafts open. Rows have a length
each; nothing is said about how they lie in memory (mlx-lm's growing caches, or buffers [rows, heads, capacity, dim] with a
length a row).
"""

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from mtpd_mlx.speculative.protocol import Backend, Round
from mtpd_mlx.speculative.round_costs import Kind
from mtpd_mlx.speculative.sampling import Sampling


class Turn(NamedTuple):
    """One row's part in a round. token: the text's next one, known but not cached. num_draft_tokens: the heads' drafts to
    verify behind it, at most; 0: a plain step; None: as many, and whose, as the row's text alone says, so that a seeded text
    does not depend on its company."""

    row: int
    token: int
    num_draft_tokens: int | None = 0


class Batch(Protocol):
    """max_rows: texts that are held at a time, those at rest included. max_together: of these, how many a round may have.
    num_draft_tokens: the heads' drafts of a round at most. capacity: positions of one row. regular: the last round took as long
    as rounds of its kind do; false where it did something for the first time, or its heads had much to catch up with."""

    max_rows: int
    max_together: int
    num_draft_tokens: int
    capacity: int
    regular: bool

    def join(self, sampling: Sampling) -> int:
        """An empty text, sampled so; the number of its row. ValueError where max_rows are taken."""
        ...

    def restart(self, row: int, sampling: Sampling, length: int) -> int:
        """Another text takes the row over, sampled so, that has the first `length` positions in common with the one there.
        Returns how many of them it keeps: fewer where they are of no use to it, none for a text with a seed."""
        ...

    def length(self, row: int) -> int:
        """Positions of the row that are cached and final."""
        ...

    def prefill(self, row: int, tokens: Sequence[int]) -> int:
        """Appends `tokens` (at least one); the main head's next token. A prompt may come in several pieces: what those before
        the last one return is of no use. NotFiniteError where logits are not finite, Cancelled at a cancel_point inside; the
        row is then as before, or shorter."""
        ...

    def round(self, turns: Sequence[Turn]) -> list[Round]:
        """Appends, in every turn's row (each at most once, at most max_together), its token and the drafts that the main head
        confirms. Needs one free position in each row; a row without the room, or the state, for its drafts verifies fewer.
        NO_TOKEN stands where a row's logits are not finite (finite.py): the other rows are as good as ever."""
        ...

    def costs(self, rows: int) -> Mapping[Kind, float]:
        """What a round of so many rows may cost, by the drafts of the heads that each of its turns verifies, PLAIN among them.
        A guess: rounds correct it."""
        ...

    def alone(self, row: int) -> Backend | None:
        """The decoder to drive while no other row is: as fast as without a batch, with a choice of drafts of its own. It is
        valid until any other method is called for this row. None: `round` is as fast."""
        ...

    def rewind_to(self, row: int, length: int) -> None:
        """Keeps positions 0..length-1 of the row. ValueError outside 0..length."""
        ...

    def leave(self, row: int) -> None:
        """The row is free, and what it held is forgotten."""
        ...

    def check(self) -> None:
        """RuntimeError in one line where the caches are not what the rows' lengths say, or a row is neither free nor taken.
        Called when nothing is decoded: it may take a while."""
        ...


@runtime_checkable
class HasCosts(Protocol):
    """A Batch whose costs can be kept for the next start. costs_key: all that they depend on, the machine first; None: no."""

    costs_key: str | None


def check_turns(turns: Sequence[Turn], taken: Collection[int], most: int) -> None:
    """What `round` refuses first, on every runtime: ValueError where rows are named twice, not taken, none or too many."""
    rows = [turn.row for turn in turns]
    if not 1 <= len(rows) <= most or len(set(rows)) != len(rows):
        raise ValueError(f"round: got rows {rows}, expected 1..{most} different ones")
    if unknown := sorted(set(rows) - set(taken)):
        raise ValueError(f"round: got row {unknown[0]}, expected one of {sorted(taken)}")
