"""Token ids -> text, piece by piece."""

from collections.abc import Sequence

from mtpd_mlx.text.tokenizer import Tokenizer

# Tokens that bring no text for so long are given out as they are: a whole character never needs as many.
LONGEST_WAIT = 32


class StreamDecoder:
    """Text as it becomes certain: a character whose bytes are spread over tokens waits for its last one.

    The pieces, joined, are tokenizer.decode of all tokens (special ones skipped). tokenizers' DecodeStream finds them. It has
    no end of a text (inside a character), no bound on how long invalid bytes wait, and raises where a token changes text that
    is out, such as half a character behind the byte token of a line break: both bytes decode to U+FFFD then. Here such text
    is given out as far as it is new, and the next token begins a new stream.
    """

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._step = tokenizer.stream()
        self._shown: list[int] = []  # the last tokens whose text is out: decoders treat the first token of a text differently
        self._waiting: list[int] = []  # the tokens after them

    def add(self, token: int) -> str:
        """The text that `token` completes (possibly none)."""
        self._waiting.append(token)
        try:
            text = self._step(token)
        except Exception:  # the library raises no other kind
            return self.finish()
        if text is None:
            return self.finish() if len(self._waiting) == LONGEST_WAIT else ""
        self._shown, self._waiting = self._waiting, []
        return text

    def finish(self) -> str:
        """What never became a whole character."""
        decode = self._tokenizer.decode
        text = decode(self._shown + self._waiting)[len(decode(self._shown)) :]
        self._waiting, self._step = [], self._tokenizer.stream()
        for token in self._shown:
            self._step(token)
        return text


class StopMatcher:
    """Holds back text that may be the beginning of a stop string; nothing from a stop string on is let through.

    Special tokens, which are no part of the text, are matched too (`hidden`): alone, or among text."""

    def __init__(self, stops: Sequence[str]):
        if any(not s for s in stops):
            raise ValueError("stop string: got an empty string, expected at least one character")
        self._stops = tuple(stops)
        self._held = ""
        self._hidden: list[bool] = []  # of each character held
        self.stopped = False

    def add(self, text: str, hidden: bool = False) -> str:
        """The text that no stop string can reach any more; `stopped` is set once one is complete."""
        if self.stopped:
            return ""
        self._held += text
        self._hidden += [hidden] * len(text)
        found = [i for i in (self._held.find(s) for s in self._stops) if i >= 0]
        if found:
            self.stopped = True
            text = self._take(min(found))
            self._take(len(self._held))
            return text
        keep = max((self._overlap(s) for s in self._stops), default=0)
        return self._take(len(self._held) - keep)

    def finish(self) -> str:
        """The text held back when generation ends before a stop string is complete."""
        return self._take(len(self._held))

    def _take(self, count: int) -> str:
        """Removes so many characters; what of them is text."""
        text = "".join(c for c, hidden in zip(self._held[:count], self._hidden[:count], strict=True) if not hidden)
        self._held, self._hidden = self._held[count:], self._hidden[count:]
        return text

    def _overlap(self, stop: str) -> int:
        """Length of the longest proper beginning of `stop` that the held text ends with."""
        longest = min(len(stop) - 1, len(self._held))
        return next((n for n in range(longest, 0, -1) if self._held.endswith(stop[:n])), 0)
