"""Scripted fakes: a text that is a pure function of its prefix, and drafts that are right where the script says so."""

import hashlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from mtpd_mlx.speculative.protocol import Round

VOCAB = 97
Target = Callable[[Sequence[int]], int]


def hashed(tokens: Sequence[int]) -> int:
    """A main head without a pattern: any wrong token in the cache changes everything that follows."""
    digest = hashlib.blake2b(np.asarray(tokens, dtype=np.int64).tobytes(), digest_size=4).digest()
    return int.from_bytes(digest, "little") % VOCAB


def scripted(text: Sequence[int], prompt_length: int) -> Target:
    """A main head that continues any prompt of `prompt_length` tokens with `text`, then with 0s."""

    def target(tokens: Sequence[int]) -> int:
        i = len(tokens) - prompt_length
        return text[i] if 0 <= i < len(text) else 0

    return target


class ScriptedModel:
    """A StepModel. `script` yields, per draft call, how many leading drafts are right (None: all of them)."""

    def __init__(
        self,
        target: Target = hashed,
        script: Iterator[int | None] | None = None,
        num_drafts: int = 4,
        capacity: int = 256,
    ):
        self.target, self.script = target, script
        self.num_draft_tokens, self.capacity = num_drafts, capacity
        self.tokens: list[int] = []
        self.calls: list[tuple[str, int]] = []

    @property
    def length(self) -> int:
        return len(self.tokens)

    def verify(self, tokens: Sequence[int]) -> np.ndarray:
        assert len(tokens) >= 1 and self.length + len(tokens) <= self.capacity
        self.calls.append(("verify", len(tokens)))
        predicted = []
        for token in tokens:
            self.tokens.append(int(token))
            predicted.append(self.target(self.tokens))
        return np.array(predicted)

    def draft(self, next_token: int) -> list[int]:
        assert self.length >= 1
        self.calls.append(("draft", self.num_draft_tokens))
        right = next(self.script) if self.script is not None else None
        text, drafts = [*self.tokens, next_token], []
        for k in range(self.num_draft_tokens):
            drafts.append(self.target(text) + (right is not None and k >= right))
            text.append(drafts[-1])
        return drafts

    def rewind_to(self, length: int) -> None:
        if not 0 <= length <= self.length:
            raise ValueError(f"rewind_to: got {length}, expected 0..{self.length}")
        self.calls.append(("rewind", length))
        del self.tokens[length:]


class FusedModel:
    """A Backend like the fused graph: drafts are made at the end of each call, for the token that it predicts."""

    def __init__(self, model: ScriptedModel):
        self.model = model
        self.num_draft_tokens, self.capacity = model.num_draft_tokens, model.capacity
        self._drafts: dict[int, list[int]] = {}

    @property
    def length(self) -> int:
        return self.model.length

    def _ready(self, token: int) -> int:
        self._drafts = {token: self.model.draft(token)}
        return token

    def prefill(self, tokens: Sequence[int]) -> int:
        return self._ready(int(self.model.verify(tokens)[-1]))

    def step(self, token: int) -> int:
        return self._ready(int(self.model.verify([token])[-1]))

    def round(self, token: int) -> Round:
        start = self.length
        drafts = self._drafts.get(token) or self.model.draft(token)  # after a rewind there are none
        predicted = self.model.verify([token, *drafts]).tolist()
        accepted = 0
        while accepted < len(drafts) and predicted[accepted] == drafts[accepted]:
            accepted += 1
        self.model.rewind_to(start + 1 + accepted)
        self._ready(predicted[accepted])
        return Round(predicted[: accepted + 1], accepted, len(drafts))

    def rewind_to(self, length: int) -> None:
        self.model.rewind_to(length)
        self._drafts = {}


def plain_text(target: Target, prompt: Sequence[int], count: int) -> list[int]:
    """The oracle: token after token, nothing cached, nothing drafted."""
    text = list(prompt)
    for _ in range(count):
        text.append(target(text))
    return text[len(prompt) :]
