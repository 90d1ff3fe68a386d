"""`Answer`: the text of one request, piece by piece, from the chunks of the decoder.
Called by serving/."""

from collections.abc import Sequence
from dataclasses import dataclass

from mtpd_mlx.text.streaming import StopMatcher, StreamDecoder
from mtpd_mlx.text.tokenizer import Tokenizer

Piece = tuple[str, bool]  # text, and whether the token that completed it was an accepted draft


@dataclass
class Answer:
    """`see` takes tokens one by one as the loop's `stop` does; `take` gives what has become certain since the last call.

    starts: for every token seen, the characters of text before it."""

    tokenizer: Tokenizer
    stop: Sequence[str]

    def __post_init__(self) -> None:
        self._special = self.tokenizer.special_tokens() if self.stop else {}
        self._decoder = StreamDecoder(self.tokenizer)
        self._stops = StopMatcher(self.stop, self._special.values())
        self._pieces: list[str] = []  # one per token seen
        self.starts: list[int] = []
        self.length = 0  # characters of all tokens seen

    def see(self, token: int) -> bool:
        written = self._decoder.add(token)
        self.starts.append(self.length)
        self.length += len(written)
        text = self._stops.add(written)
        if token in self._special:
            text += self._stops.add_special(self._special[token])
        self._pieces.append(text)
        return self._stops.stopped

    @property
    def stopped_by(self) -> str | None:
        """The stop text that ended it."""
        return self._stops.found

    def take(self, num_drafted: int) -> list[Piece]:
        """Of a chunk whose first num_drafted tokens were accepted drafts."""
        pieces = [(text, i < num_drafted) for i, text in enumerate(self._pieces) if text]
        self._pieces = []
        return pieces

    def finish(self) -> str:
        """What was held back."""
        return self._stops.add(self._decoder.finish()) + self._stops.finish()
