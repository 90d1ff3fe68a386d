"""`Saved`, `Keeps`: texts whose caches are kept outside of their rows.
Called by serving/prefix_cache.py; both runtimes implement them."""

from typing import Protocol, runtime_checkable

from mtpd_mlx.speculative.sampling import Sampling


class Saved(Protocol):
    """The caches of a text, of base and heads. kind: only decoders of the same kind can take it; nbytes: memory."""

    @property
    def kind(self) -> str: ...

    @property
    def tokens(self) -> list[int]: ...

    @property
    def nbytes(self) -> int: ...


@runtime_checkable
class Keeps(Protocol):
    """A decoder of one text that can be saved. saved_kind: of what it saves and can take."""

    @property
    def saved_kind(self) -> str: ...

    def save(self) -> Saved | None:
        """A copy of what is cached. None where it cannot be cut to any length (recurrent state), or is empty."""
        ...

    def load(self, saved: Saved, length: int) -> None:
        """The text is the first `length` positions of what was saved, whatever it was before."""
        ...


@runtime_checkable
class SavesRows(Protocol):
    """Rows (batch.py, bound_rows.py) whose texts can be saved. Most do so where their decoders do."""

    def save(self, row: int) -> Saved | None: ...

    def load(self, row: int, saved: Saved, length: int) -> int:
        """`row` is empty. How many positions it has then: 0 where it cannot take them."""
        ...


def save_from(decoder: object) -> Saved | None:
    """The decoder's text with its caches; None if it cannot save one."""
    return decoder.save() if isinstance(decoder, Keeps) else None


def load_into(decoder: object, saved: Saved, length: int, sampling: Sampling) -> int:
    """As SavesRows.load. A text with a seed begins afresh, so that it is the same one every time."""
    seeded = sampling.seed is not None and not sampling.greedy
    if seeded or not length or not isinstance(decoder, Keeps) or decoder.saved_kind != saved.kind:
        return 0
    decoder.load(saved, length)
    return length
