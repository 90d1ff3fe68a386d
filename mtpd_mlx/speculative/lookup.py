"""`Lookup`: drafts copied from where the last tokens stood before in prompt or text (Saxena 2023). No model is run.
Called by speculative/drafting.py, for every runtime.

The longest match counts, n tokens from LONGEST down to SHORTEST, and of several the latest. The drafts are the tokens behind
it, as they stand; where they reach the end of the text they go on with themselves, so that a text that repeats a period of p
tokens is continued with that period.

How far to trust a match is measured, not assumed. Every new token of the text says whether the match before it was right about
it, drafted or not. So p(n), how often a match of n tokens is right about the next one, is known for this text at no cost. A
right guess makes the match one token longer, so that

    P(drafts 1..j are right | match of n) = p(n) p(n+1) .. p(n+j-1)

Under sampling the same number is the mean probability of the drafted token, which is what rejection sampling accepts it by.
"""

from collections.abc import Sequence
from dataclasses import dataclass

SHORTEST, LONGEST = 2, 8  # tokens of a match that the index tells apart
EXTENDED = 32  # tokens up to which the length of a match is told for its credibility
MOST_DRAFTS = 16

# Lengths of matches that count alike, by their least, and p(n) before anything is known of a text.
CLASSES = (2, 3, 4, 5, 6, 8, 12, 16, 24, 32)
PRIOR = (0.45, 0.55, 0.64, 0.70, 0.75, 0.82, 0.85, 0.89, 0.93, 0.95)
PRIOR_COUNT, MEMORY = 4.0, 0.96  # what the prior weighs in tokens; what a token weighs after the next one of its class


@dataclass(frozen=True)
class Match:
    """The last `length` tokens of the text ended before `follows` before, too: the token at `follows` came next."""

    follows: int
    length: int


class NgramIndex:
    """Where every n-gram of a text ended last, n = shortest..longest. A token costs longest - shortest + 1 entries."""

    def __init__(self, shortest: int = SHORTEST, longest: int = LONGEST):
        if not 1 <= shortest <= longest:
            raise ValueError(f"n-grams: got {shortest}..{longest} tokens, expected 1 <= shortest <= longest")
        self.shortest, self.longest = shortest, longest
        self.tokens: list[int] = []
        self._ends: list[dict[tuple[int, ...], int]] = [{} for _ in range(longest - shortest + 1)]
        self._match: Match | None = None

    @property
    def match(self) -> Match | None:
        """The longest match of the end of the text, of several the latest."""
        return self._match

    def append(self, token: int) -> None:
        tokens = self.tokens
        tokens.append(token)
        size = len(tokens)
        end = tuple(tokens[-self.longest :])
        found = None
        for n in range(min(self.longest, size), self.shortest - 1, -1):
            ends, gram = self._ends[n - self.shortest], end[-n:]
            if found is None and (before := ends.get(gram)) is not None:
                found = Match(before, n)
            ends[gram] = size
        self._match = found if found is None or found.length < self.longest else self._extended(found)

    def _extended(self, match: Match) -> Match:
        """The same match with its length told up to EXTENDED."""
        tokens, back, length = self.tokens, len(self.tokens) - match.follows, match.length
        limit = min(EXTENDED, match.follows)
        while length < limit and tokens[-1 - length] == tokens[-1 - length - back]:
            length += 1
        return Match(match.follows, length)

    def rewind(self, length: int) -> None:
        """Keeps the first `length` tokens. It costs as much as reading them again."""
        if length >= len(self.tokens):
            return
        kept = self.tokens[:length]
        self.__init__(self.shortest, self.longest)  # type: ignore[misc]
        for token in kept:
            self.append(token)

    def following(self, count: int) -> list[int]:
        """`count` tokens that follow the match: the drafts. Empty without a match."""
        if self._match is None:
            return []
        follows, period = self._match.follows, len(self.tokens) - self._match.follows
        return [self.tokens[follows + i % period] for i in range(count)]


class Credibility:
    """p(n): how often a match of n tokens was right about the next one, in this text. Counts fade by MEMORY."""

    def __init__(self) -> None:
        self._right = [PRIOR_COUNT * p for p in PRIOR]
        self._seen = [PRIOR_COUNT] * len(PRIOR)

    def saw(self, length: int, right: bool) -> None:
        """A match of `length` tokens was followed by the token that it named, or by another."""
        i = class_of(length)
        self._right[i] = PRIOR_COUNT * PRIOR[i] * (1 - MEMORY) + self._right[i] * MEMORY + right
        self._seen[i] = PRIOR_COUNT * (1 - MEMORY) + self._seen[i] * MEMORY + 1

    def next_right(self, length: int) -> float:
        """p(length)."""
        i = class_of(length)
        return self._right[i] / self._seen[i]

    def chain(self, length: int, count: int) -> list[float]:
        """[count]: P(drafts 1..j are all right), j = 1..count, behind a match of `length` tokens."""
        out, all_right = [], 1.0
        for j in range(count):
            all_right *= self.next_right(length + j)
            out.append(all_right)
        return out

    def new_text(self) -> None:
        """Another text may be of another kind: what is known counts half."""
        for i, p in enumerate(PRIOR):
            self._right[i] = (self._right[i] + PRIOR_COUNT * p) / 2
            self._seen[i] = (self._seen[i] + PRIOR_COUNT) / 2


def class_of(length: int) -> int:
    """The last class whose least length is at most `length`; the first one below all."""
    return max((i for i, least in enumerate(CLASSES) if least <= length), default=0)


class Lookup:
    """The text so far, the match at its end, and how far to trust it."""

    def __init__(self, most_drafts: int = MOST_DRAFTS):
        self.most_drafts = most_drafts
        self._index, self._credibility = NgramIndex(), Credibility()

    def restart(self) -> None:
        """Another text begins."""
        self._index.rewind(0)
        self._credibility.new_text()

    def begin(self, text: Sequence[int], token: int) -> None:
        """The text is `text`, and `token` follows it. What is new of `text` is indexed, not judged: a prompt repeats itself for
        other reasons than a text quotes it."""
        known = self._index.tokens
        common = next((i for i, (a, b) in enumerate(zip(known, text, strict=False)) if a != b), min(len(known), len(text)))
        self._index.rewind(common)
        for each in text[common:]:
            self._index.append(each)
        self.add(token)

    def ends_with(self, length: int, token: int) -> bool:
        """The text so far is of `length` tokens, and `token` after them."""
        return len(self._index.tokens) == length + 1 and self._index.tokens[-1] == token

    def add(self, token: int) -> None:
        """The next token of the text."""
        match = self._index.match
        if match is not None:
            self._credibility.saw(match.length, self._index.tokens[match.follows] == token)
        self._index.append(token)

    def chain(self) -> list[float]:
        """P(drafts 1..j are all right), j = 1..most_drafts; empty without a match."""
        match = self._index.match
        return [] if match is None else self._credibility.chain(match.length, self.most_drafts)

    def drafts(self, count: int) -> list[int]:
        return self._index.following(count)
