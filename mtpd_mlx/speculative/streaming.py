"""Token ids -> text, piece by piece."""

from collections.abc import Sequence

from mtpd_mlx.speculative.tokenizer import Tokenizer

REPLACEMENT = "\ufffd"


class StreamDecoder:
    """Text as it becomes certain: a character whose bytes are spread over tokens waits for its last one.

    Only the tokens since the last line break or the last long enough stretch are decoded again, so the cost per token is
    bounded.
    """

    WINDOW = 64

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._pending: list[int] = []
        self._shown = ""

    def add(self, token: int) -> str:
        """The text that `token` completes (possibly none)."""
        self._pending.append(token)
        text = self._tokenizer.decode(self._pending)
        if text.endswith(REPLACEMENT):
            return ""
        new = text[len(self._shown) :]
        self._shown = text
        if len(self._pending) > self.WINDOW:
            # One token of context stays: some decoders treat the first token of a text differently.
            self._pending = self._pending[-1:]
            self._shown = self._tokenizer.decode(self._pending)
        return new

    def finish(self) -> str:
        """What never became a whole character."""
        return self._tokenizer.decode(self._pending)[len(self._shown) :]


class StopMatcher:
    """Holds back text that may be the beginning of a stop string; nothing from a stop string on is let through."""

    def __init__(self, stops: Sequence[str]):
        if any(not s for s in stops):
            raise ValueError("stop string: got an empty string, expected at least one character")
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False

    def add(self, text: str) -> str:
        if self.stopped:
            return ""
        self._held += text
        found = [i for i in (self._held.find(s) for s in self._stops) if i >= 0]
        if found:
            self.stopped = True
            text, self._held = self._held[: min(found)], ""
            return text
        keep = max((self._overlap(s) for s in self._stops), default=0)
        cut = len(self._held) - keep
        text, self._held = self._held[:cut], self._held[cut:]
        return text

    def finish(self) -> str:
        text, self._held = self._held, ""
        return "" if self.stopped else text

    def _overlap(self, stop: str) -> int:
        """Length of the longest proper beginning of `stop` that the held text ends with."""
        return next((n for n in range(min(len(stop) - 1, len(self._held)), 0, -1) if self._held.endswith(stop[:n])), 0)
