"""`StreamDecoder`, `StopMatcher`: token ids to text, piece by piece, up to a stop text.
Called by text/generate.py, text/answer.py and api.py."""

from collections.abc import Collection, Sequence

from mtpd_mlx.text.tokenizer import Tokenizer

# Tokens that bring no text for so long are given out as they are: a whole character never needs as many.
LONGEST_WAIT = 32
OTHER = "\udfff"  # in StopMatcher: a special token that no stop string names


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
    """Holds back text that may be the beginning of a stop string; nothing from a stop string on is let through. `stopped` and
    `found` say that, and which, one is complete.

    Special tokens are no part of the text, but stop strings may be or hold some (`special`: all there are). Each stands as one
    sign, a code point that no text has (half a surrogate pair), so that only whole ones are matched."""

    def __init__(self, stops: Sequence[str], special: Collection[str] = ()):
        if any(not s for s in stops):
            raise ValueError("stop string: got an empty string, expected at least one character")
        named = sorted((t for t in special if any(t in s for s in stops)), key=len, reverse=True)
        self._signs = {token: chr(0xD800 + i) for i, token in enumerate(named)}
        self._stops = [self._signed(s) for s in stops]
        self._named = dict(zip(self._stops, stops, strict=True))
        self._held = ""
        self.found: str | None = None  # the stop string that was complete first

    @property
    def stopped(self) -> bool:
        return self.found is not None

    def _signed(self, stop: str) -> str:
        for token, sign in self._signs.items():
            stop = stop.replace(token, sign)
        return stop

    def add(self, text: str) -> str:
        """The text that no stop string can reach any more; `stopped` is set once one is complete."""
        if self.stopped:
            return ""
        self._held += text
        found = [(i, s) for s in self._stops if (i := self._held.find(s)) >= 0]
        if found:
            first, stop = min(found)
            self.found = self._named[stop]
            text, self._held = self._held[:first], ""
            return without_signs(text)
        keep = max((self._overlap(s) for s in self._stops), default=0)
        cut = len(self._held) - keep
        text, self._held = self._held[:cut], self._held[cut:]
        return without_signs(text)

    def add_special(self, token: str) -> str:
        """The same for a special token."""
        return self.add(self._signs.get(token, OTHER))

    def finish(self) -> str:
        """The text held back when generation ends before a stop string is complete."""
        text, self._held = self._held, ""
        return without_signs(text)

    def _overlap(self, stop: str) -> int:
        """Length of the longest proper beginning of `stop` that the held text ends with."""
        longest = min(len(stop) - 1, len(self._held))
        return next((n for n in range(longest, 0, -1) if self._held.endswith(stop[:n])), 0)


def without_signs(text: str) -> str:
    return "".join(c for c in text if not "\ud800" <= c <= OTHER)
