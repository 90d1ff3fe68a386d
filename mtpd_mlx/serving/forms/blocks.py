"""`Blocks`: an answer as a run of blocks (text, thoughts, calls of tools).
Called by anthropic_reply.py and responses_reply.py."""

import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from mtpd_mlx.serving.forms.logprobs import Placed, Scores
from mtpd_mlx.serving.parts import Kinds, Part, Splitter


@dataclass
class Block:
    """kind: "text", "reasoning" or "call"; text: so far, of a call its arguments as JSON; name: of a call's function;
    logprobs: of a text's tokens, where they are wanted."""

    kind: str
    text: str = ""
    name: str = ""
    logprobs: list[dict[str, Any]] = field(default_factory=list)
    id: str = field(default_factory=lambda: secrets.token_hex(12))


# "begin", "more" or "end"; the block's place; the block; more: what is new of its text, and of its log-probabilities
Step = tuple[str, int, Block, str, list[dict[str, Any]]]


class Blocks:
    """Text of one kind goes on in one block; a call is a block of its own, given out whole."""

    def __init__(self, kinds: Kinds, scores: Scores | None = None):
        self.blocks: list[Block] = []
        self._splitter, self._open, self._scores = Splitter(kinds), False, scores

    @property
    def calls(self) -> bool:
        return any(block.kind == "call" for block in self.blocks)

    def add(self, text: str, scores: Sequence[Placed] = ()) -> Iterator[Step]:
        if self._scores is not None:
            self._scores.add(scores)
        return self._see(self._splitter.add(text))

    def finish(self) -> Iterator[Step]:
        """The rest. An answer without a block gets an empty one of text."""
        yield from self._see(self._splitter.finish())
        if not self.blocks:
            yield self._begin(Block("text"))
        yield from self._end()

    def _see(self, parts: list[Part]) -> Iterator[Step]:
        for part in parts:
            if part.call is not None:
                yield from self._end()
                yield self._begin(Block("call", name=part.call["name"]))
                yield self._more(part.call["arguments"])
                yield from self._end()
                continue
            if not self._open or self.blocks[-1].kind != part.kind:
                yield from self._end()
                yield self._begin(Block(part.kind))
            scores = self._scores if part.kind == "text" else None
            yield self._more(part.text, None if scores is None else scores.content(part.start, part.end))

    def _begin(self, block: Block) -> Step:
        self.blocks.append(block)
        self._open = True
        return "begin", len(self.blocks) - 1, block, "", []

    def _more(self, text: str, logprobs: list[dict[str, Any]] | None = None) -> Step:
        self.blocks[-1].text += text
        self.blocks[-1].logprobs += logprobs or []
        return "more", len(self.blocks) - 1, self.blocks[-1], text, logprobs or []

    def _end(self) -> Iterator[Step]:
        if self._open:
            self._open = False
            yield "end", len(self.blocks) - 1, self.blocks[-1], "", []
