"""`MessagesReply`: the message and the events of one answer of /v1/messages.
Called by forms/anthropic.py."""

import json
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from mtpd_mlx.serving.engine import Finished, Progress
from mtpd_mlx.serving.errors import ApiError
from mtpd_mlx.serving.events import event
from mtpd_mlx.serving.forms.blocks import Block, Blocks, Step
from mtpd_mlx.serving.forms.common import Said
from mtpd_mlx.serving.parts import CALL, NOTHING_APART, Kinds

ENDS = {"stop": "end_turn", "length": "max_tokens"}
DELTAS = {
    "text": ("text_delta", "text"),
    "reasoning": ("thinking_delta", "thinking"),
    "call": ("input_json_delta", "partial_json"),
}


@dataclass
class MessagesReply:
    model: str
    prompt_tokens: int
    kinds: Kinds = NOTHING_APART
    id: str = field(default_factory=lambda: "msg_" + secrets.token_hex(12))

    def __post_init__(self) -> None:
        self._blocks = Blocks(self.kinds)

    def total(self, said: Sequence[Said]) -> Finished:
        return said[0].end

    def whole(self, said: Sequence[Said]) -> dict[str, Any]:
        finished = said[0].end
        for _ in (*self._blocks.add(said[0].all.text), *self._blocks.finish()):
            pass
        content = [block_of(block) for block in self._blocks.blocks]
        return self._message(content) | self._ending(finished) | {"usage": usage(finished)}

    def begin(self) -> Iterator[str]:
        counted = {"input_tokens": self.prompt_tokens, "output_tokens": 0}
        nothing = {"stop_reason": None, "stop_sequence": None, "usage": counted}
        yield self._event("message_start", message=self._message([]) | nothing)

    def piece(self, index: int, progress: Progress) -> Iterator[str]:
        return self._say(self._blocks.add(progress.text))

    def end(self, index: int, finished: Finished) -> Iterator[str]:
        yield from self._say(self._blocks.finish())
        yield self._event("message_delta", delta=self._ending(finished), usage=usage(finished))
        yield self._event("message_stop")

    def close(self, said: Sequence[Said]) -> Iterator[str]:
        return iter(())

    def failed(self, error: ApiError) -> Iterator[str]:
        yield event(error_body(error), "error")

    def _say(self, steps: Iterator[Step]) -> Iterator[str]:
        for kind, place, block, new, _ in steps:
            if kind == "begin":
                yield self._event("content_block_start", index=place, content_block=block_of(block, begun=True))
            elif kind == "more":
                delta, name = DELTAS[block.kind]
                yield self._event("content_block_delta", index=place, delta={"type": delta, name: new})
            else:
                yield self._event("content_block_stop", index=place)

    def _message(self, content: list[dict[str, Any]]) -> dict[str, Any]:
        return {"id": self.id, "type": "message", "role": "assistant", "model": self.model, "content": content}

    def _ending(self, finished: Finished) -> dict[str, Any]:
        stop = None if finished.stop_text == CALL[1] and self._blocks.calls else finished.stop_text
        reason = "stop_sequence" if stop is not None else ENDS[finished.reason]
        if self._blocks.calls and reason == "end_turn":
            reason = "tool_use"
        return {"stop_reason": reason, "stop_sequence": stop}

    def _event(self, kind: str, **values: Any) -> str:
        return event({"type": kind} | values, kind)


def block_of(block: Block, begun: bool = False) -> dict[str, Any]:
    """begun: it is empty yet."""
    text = "" if begun else block.text
    if block.kind == "call":
        return {"type": "tool_use", "id": "toolu_" + block.id, "name": block.name, "input": {} if begun else json.loads(text)}
    return (
        {"type": "thinking", "thinking": text, "signature": ""} if block.kind == "reasoning" else {"type": "text", "text": text}
    )


def usage(finished: Finished) -> dict[str, Any]:
    """input_tokens are those that were not cached, as Anthropic counts them."""
    cached = finished.cached_tokens
    counts = {"input_tokens": finished.prompt_tokens - cached, "output_tokens": finished.stats.tokens}
    return counts | {"cache_read_input_tokens": cached, "cache_creation_input_tokens": 0, "mtpd": finished.figures()}


def error_body(error: ApiError) -> dict[str, Any]:
    kind = {413: "request_too_large", 500: "api_error", 503: "overloaded_error"}.get(error.status, error.kind)
    return {"type": "error", "error": {"type": kind, "message": error.message}}
