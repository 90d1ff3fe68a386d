"""`Scores`: log-probabilities in OpenAI's shapes, of chats, completions and responses; the fields that ask for them.
Called by openai.py, openai_reply.py, responses.py and blocks.py.

The values are those of speculative/logprobs.py. A token goes with the piece of text that holds its first character.
"""

from collections import deque
from collections.abc import Sequence
from typing import Any

from mtpd_mlx.serving.errors import invalid
from mtpd_mlx.serving.fields import Fields
from mtpd_mlx.speculative.logprobs import Score
from mtpd_mlx.text.streaming import StreamDecoder
from mtpd_mlx.text.tokenizer import Tokenizer

MOST = 20  # of the most probable tokens, as OpenAI's API has it
Placed = tuple[int, Score]  # characters of text before the token


def read_chat_logprobs(fields: Fields) -> int | None:
    """How many of the most probable tokens are told beside each one; None: no log-probabilities are wanted."""
    wanted, top = fields.switch("logprobs"), fields.integer("top_logprobs", None, 0, MOST)
    if top and not wanted:
        raise invalid("top_logprobs", top, "logprobs true with it")
    return (top or 0) if wanted else None


def read_completion_logprobs(fields: Fields) -> int | None:
    """As read_chat_logprobs: completions name the number alone, and 0 tells of the chosen tokens."""
    return fields.integer("logprobs", None, 0, MOST)


class Scores:
    """Those of one text that wait for their piece of it."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer, self._waiting = tokenizer, deque[Placed]()

    def add(self, scores: Sequence[Placed]) -> None:
        self._waiting.extend(scores)

    def of(self, start: int, end: int) -> list[Placed]:
        """Of the tokens that begin in text [start, end). Those before belong to no piece."""
        found = []
        while self._waiting and self._waiting[0][0] < end:
            place, score = self._waiting.popleft()
            if place >= start:
                found.append((place, score))
        return found

    def content(self, start: int, end: int) -> list[dict[str, Any]]:
        """Chats' and responses' form of them."""
        return [
            self._named(score.token, score.logprob) | {"top_logprobs": [self._named(*each) for each in score.top]}
            for _, score in self.of(start, end)
        ]

    def completion(self, start: int, end: int, offset: int = 0) -> dict[str, Any]:
        """Completions' form. offset: characters of a prompt that is said before the text."""
        found = self.of(start, end)
        return {
            "tokens": [self._name(score.token) for _, score in found],
            "token_logprobs": [score.logprob for _, score in found],
            "top_logprobs": [self._table(score) for _, score in found],
            "text_offset": [place + offset for place, _ in found],
        }

    def prompt(self, tokens: Sequence[int], scores: Sequence[Score | None]) -> dict[str, Any]:
        """Of a prompt, in completions' form: nothing is known of its first token. scores: as many as tokens."""
        return {
            "tokens": [self._name(token) for token in tokens],
            "token_logprobs": [None if score is None else score.logprob for score in scores],
            "top_logprobs": [None if score is None else self._table(score) for score in scores],
            "text_offset": starts_of(tokens, self._tokenizer),
        }

    def _table(self, score: Score) -> dict[str, float]:
        """The chosen token is always among them."""
        table: dict[str, float] = {}
        for token, logprob in [*score.top, (score.token, score.logprob)]:
            table.setdefault(self._name(token), logprob)
        return table

    def _named(self, token: int, logprob: float) -> dict[str, Any]:
        return {"token": self._name(token), "logprob": logprob, "bytes": list(self._tokenizer.token_bytes(token))}

    def _name(self, token: int) -> str:
        """The token's text; of one that holds part of a character its bytes, as OpenAI's API writes them."""
        raw = self._tokenizer.token_bytes(token)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def starts_of(tokens: Sequence[int], tokenizer: Tokenizer) -> list[int]:
    """Characters of text before each of them."""
    decoder, starts, length = StreamDecoder(tokenizer), list[int](), 0
    for token in tokens:
        starts.append(length)
        length += len(decoder.add(token))
    return starts
