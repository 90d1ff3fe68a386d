"""`Kept`: a decoder whose text can be drawn anew, saved and taken up again.
The base class of decoding/decoder.py and decoding/plain.py."""

from abc import ABC, abstractmethod
from typing import Any

from mtpd_mlx.decoding.saved_text import SavedText, kind_of, save_text
from mtpd_mlx.decoding.text_state import HostState, Model


class Kept(ABC):
    """protocol.Renews and saved.Keeps, in terms of the state over mlx-lm's caches."""

    model: Model

    @property
    @abstractmethod
    def length(self) -> int: ...

    @abstractmethod
    def rewind_to(self, length: int) -> None: ...

    @abstractmethod
    def settled(self) -> HostState:
        """The state with nothing under way."""

    @abstractmethod
    def resume(self, tokens: list[int], caches: list[Any], head_caches: list[Any]) -> None:
        """Goes on behind `tokens`, which these caches hold."""

    def renew(self) -> None:
        """What follows is drawn anew (protocol.Renews)."""
        host = self.settled()
        if host.tokens:
            self.resume(list(host.tokens), host.caches, host.head_caches)

    @property
    def saved_kind(self) -> str:
        return kind_of(self.model.num_draft_tokens)

    def save(self) -> SavedText | None:
        """A copy of the text's caches (speculative/saved.py)."""
        return save_text(self.settled()) if self.length else None

    def load(self, saved: SavedText, length: int) -> None:
        """The text is the first `length` positions of what was saved."""
        self.rewind_to(0)
        self.resume(saved.tokens[:length], *saved.caches(length))
