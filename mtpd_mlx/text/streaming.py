"""Token ids -> text, piece by piece."""

from collections.abc import Sequence

from mtpd_mlx.text.tokenizer import Tokenizer

REPLACEMENT = "\ufffd"
# Runs of invalid bytes are given out after this many tokens: a whole character never needs as many.
LONGEST_WAIT = 32


class StreamDecoder:
    """Text as it becomes certain: a character whose bytes are spread over tokens waits for its last one.

    The pieces, joined, are tokenizer.decode of all tokens (special ones skipped). Only the last group of tokens that
    ended with a whole character is decoded again (decoders treat the first token of a text differently, so it is the
    context of the next): the cost per token does not grow with the text.
    """

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._window: list[int] = []  # a shown group of tokens, then those that wait
        self._shown = 0  # characters of the window's text that are out
        self._group = 0  # where the waiting tokens begin

    def add(self, token: int) -> str:
        """The text that `token` completes (possibly none)."""
        if token in self._tokenizer.special_token_ids:  # no text, and no context for the next token
            return ""
        self._window.append(token)
        text = self._tokenizer.decode(self._window)
        waits = text.endswith(REPLACEMENT) and len(self._window) - self._group < LONGEST_WAIT
        if waits or len(text) <= self._shown:
            return ""
        new = text[self._shown :]
        self._window = self._window[self._group :]
        self._group, self._shown = len(self._window), len(self._tokenizer.decode(self._window))
        return new

    def finish(self) -> str:
        """What never became a whole character. Ends the text."""
        new = self._tokenizer.decode(self._window)[self._shown :]
        self._window, self._shown, self._group = [], 0, 0
        return new


class StopMatcher:
    """Holds back text that may be the beginning of a stop string; nothing from a stop string on is let through."""

    def __init__(self, stops: Sequence[str]):
        if any(not s for s in stops):
            raise ValueError("stop string: got an empty string, expected at least one character")
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False

    def add(self, text: str) -> str:
        """The text that no stop string can reach any more; `stopped` is set once one is complete."""
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
        """The text held back when generation ends before a stop string is complete."""
        text, self._held = self._held, ""
        return text

    def _overlap(self, stop: str) -> int:
        """Length of the longest proper beginning of `stop` that the held text ends with."""
        longest = min(len(stop) - 1, len(self._held))
        return next((n for n in range(longest, 0, -1) if self._held.endswith(stop[:n])), 0)
