"""Anthropic's /v1/messages and /v1/messages/count_tokens."""

import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from mtpd_mlx.serving.answer import Piece
from mtpd_mlx.serving.engine import Finished, Request
from mtpd_mlx.serving.errors import ApiError, invalid, unsupported
from mtpd_mlx.serving.events import event
from mtpd_mlx.serving.fields import Fields
from mtpd_mlx.serving.forms.common import (
    Reply,
    Served,
    encode_chat,
    made,
    read_list,
    read_message,
    read_model,
    read_sampling,
    read_stops,
    read_text,
)

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "tools": ([],),
    "tool_choice": ({"type": "auto"}, {"type": "none"}),
    "thinking": ({"type": "disabled"},),
    "service_tier": ("auto", "standard_only"),
    "container": (),
    "context_management": (),
    "mcp_servers": ([],),
}
BILLING = "x-anthropic-billing-header"  # a block that changes with every request: with it nothing would stay cached
ENDS = {"stop": "end_turn", "length": "max_tokens"}


def messages(body: Mapping[str, Any], served: Served) -> tuple[Request, Reply]:
    fields = Fields(body)
    prompt = _prompt(fields, served)
    longest = fields.integer("max_tokens", None, 1)
    if longest is None:
        raise invalid("max_tokens", None, "an integer of at least 1")
    stream, stop = fields.switch("stream"), read_stops(fields, "stop_sequences")
    request = Request(prompt, read_sampling(fields, served.sampling), longest, stop, stream)
    fields.neutral(NEUTRAL)
    fields.raw("metadata")
    return made(fields, served, prompt, "messages", request), MessagesReply(served.names[0], len(prompt))


def count_tokens(body: Mapping[str, Any], served: Served) -> int:
    fields = Fields(body)
    prompt = _prompt(fields, served)
    fields.neutral(NEUTRAL)
    fields.done()
    return len(prompt)


def _prompt(fields: Fields, served: Served) -> list[int]:
    read_model(fields, served)
    said = [read_message(m, f"messages[{i}]") for i, m in enumerate(read_list(fields, "messages"))]
    if wrong := [m["role"] for m in said if m["role"] not in ("user", "assistant")]:
        raise invalid("messages", wrong[0], "messages of user and assistant")
    if said[-1]["role"] != "user":
        raise unsupported("messages", "the last message is the assistant's: this server cannot go on with one")
    system = fields.raw("system")
    if isinstance(system, list):
        system = [s for s in system if not (isinstance(s, dict) and str(s.get("text", "")).startswith(BILLING))]
    text = "" if system is None else read_text(system, "system")
    return encode_chat([*([{"role": "system", "content": text}] if text else []), *said], served, "messages")[0]


@dataclass
class MessagesReply:
    model: str
    prompt_tokens: int
    id: str = field(default_factory=lambda: "msg_" + secrets.token_hex(12))

    def whole(self, text: str, finished: Finished) -> dict[str, Any]:
        return self._message([{"type": "text", "text": text}], finished.stop_text, finished.reason, usage(finished))

    def begin(self) -> Iterator[str]:
        counted = {"input_tokens": self.prompt_tokens, "output_tokens": 0}
        yield self._event("message_start", message=self._message([], None, None, counted))
        yield self._event("content_block_start", index=0, content_block={"type": "text", "text": ""})

    def piece(self, pieces: list[Piece]) -> Iterator[str]:
        text = "".join(piece for piece, _ in pieces)
        yield self._event("content_block_delta", index=0, delta={"type": "text_delta", "text": text})

    def end(self, text: str, finished: Finished) -> Iterator[str]:
        yield self._event("content_block_stop", index=0)
        yield self._event("message_delta", delta=_ending(finished.reason, finished.stop_text), usage=usage(finished))
        yield self._event("message_stop")

    def failed(self, error: ApiError) -> Iterator[str]:
        yield event(error_body(error), "error")

    def _message(
        self, content: list[dict[str, Any]], stop_text: str | None, reason: str | None, counted: dict[str, Any]
    ) -> dict[str, Any]:
        about = {"id": self.id, "type": "message", "role": "assistant", "model": self.model, "content": content}
        return about | _ending(reason, stop_text) | {"usage": counted}

    def _event(self, kind: str, **values: Any) -> str:
        return event({"type": kind} | values, kind)


def _ending(reason: str | None, stop_text: str | None) -> dict[str, Any]:
    said = None if reason is None else "stop_sequence" if stop_text is not None else ENDS[reason]
    return {"stop_reason": said, "stop_sequence": stop_text}


def usage(finished: Finished) -> dict[str, Any]:
    """input_tokens are those that were not cached, as Anthropic counts them."""
    cached = finished.cached_tokens
    counts = {"input_tokens": finished.prompt_tokens - cached, "output_tokens": finished.stats.tokens}
    return counts | {"cache_read_input_tokens": cached, "cache_creation_input_tokens": 0, "mtpd": finished.figures()}


def error_body(error: ApiError) -> dict[str, Any]:
    kind = {413: "request_too_large", 500: "api_error", 503: "overloaded_error"}.get(error.status, error.kind)
    return {"type": "error", "error": {"type": kind, "message": error.message}}
