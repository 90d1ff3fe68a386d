"""OpenAI's /v1/responses. Nothing is stored: every request brings its whole conversation."""

import secrets
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from mtpd_mlx.serving.answer import Piece
from mtpd_mlx.serving.engine import Finished, Request
from mtpd_mlx.serving.errors import ApiError, invalid, unsupported
from mtpd_mlx.serving.events import event
from mtpd_mlx.serving.fields import Fields
from mtpd_mlx.serving.forms.common import Reply, Served, encode_chat, made, read_message, read_model, read_sampling

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "text": ({"format": {"type": "text"}}, {}),
    "truncation": ("disabled",),
    "include": ([],),
    "background": (False,),
    "reasoning": ({},),
    "previous_response_id": (),
    "conversation": (),
    "prompt": (),
    "top_logprobs": (0,),
    "max_tool_calls": (),
    "service_tier": ("auto", "default"),
}
LABELS = ("user", "metadata", "safety_identifier", "prompt_cache_key", "store")


def responses(body: Mapping[str, Any], served: Served) -> tuple[Request, Reply]:
    fields = Fields(body)
    read_model(fields, served)
    instructions, value = fields.text("instructions"), fields.raw("input")
    items = [{"role": "user", "content": value}] if isinstance(value, str) else value
    if not isinstance(items, list) or not items:
        raise invalid("input", value, "a text, or a list of messages")
    said = [_item(item, f"input[{i}]") for i, item in enumerate(items)]
    if instructions:
        said = [{"role": "system", "content": instructions}, *said]
    prompt, _ = encode_chat(said, served, "input")
    longest = fields.integer("max_output_tokens", served.max_tokens, 1) or served.max_tokens
    request = Request(prompt, read_sampling(fields, served.sampling), longest, (), fields.switch("stream"))
    fields.neutral(NEUTRAL)
    about = {name: fields.raw(name) for name in LABELS}
    told = {"instructions": instructions, "metadata": about["metadata"] or {}, "max_output_tokens": longest}
    sampling = {"temperature": request.sampling.temp, "top_p": request.sampling.top_p or 1.0}
    return made(fields, served, prompt, "input", request), ResponsesReply(served.names[0], told | sampling)


def _item(item: Any, where: str) -> dict[str, str]:
    kind = item.get("type", "message") if isinstance(item, dict) else "message"
    if kind != "message":
        raise unsupported(f"{where}.type", f"got {str(kind)[:40]!r}, this server reads messages alone")
    return read_message(item, where)


@dataclass
class ResponsesReply:
    model: str
    told: dict[str, Any]
    id: str = field(default_factory=lambda: "resp_" + secrets.token_hex(12))
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        self._item, self._sent = "msg_" + secrets.token_hex(12), 0

    def whole(self, text: str, finished: Finished) -> dict[str, Any]:
        short = finished.reason == "length"
        status = "incomplete" if short else "completed"
        details = {"incomplete_details": {"reason": "max_output_tokens"} if short else None}
        return self._object(status, [self._message(text, status)]) | details | {"usage": usage(finished)}

    def begin(self) -> Iterator[str]:
        for kind in ("response.created", "response.in_progress"):
            yield self._event(kind, response=self._object("in_progress", []))
        item = {"id": self._item, "type": "message", "status": "in_progress", "role": "assistant", "content": []}
        yield self._event("response.output_item.added", output_index=0, item=item)
        yield self._of_part("response.content_part.added", part=_part(""))

    def piece(self, pieces: list[Piece]) -> Iterator[str]:
        yield self._of_part("response.output_text.delta", delta="".join(piece for piece, _ in pieces), logprobs=[])

    def end(self, text: str, finished: Finished) -> Iterator[str]:
        whole = self.whole(text, finished)
        yield self._of_part("response.output_text.done", text=text, logprobs=[])
        yield self._of_part("response.content_part.done", part=_part(text))
        yield self._event("response.output_item.done", output_index=0, item=whole["output"][0])
        yield self._event(f"response.{whole['status']}", response=whole)

    def failed(self, error: ApiError) -> Iterator[str]:
        said = {"error": {"code": error.code, "message": error.message}}
        yield self._event("response.failed", response=self._object("failed", []) | said)

    def _object(self, status: str, output: list[dict[str, Any]]) -> dict[str, Any]:
        about = {"id": self.id, "object": "response", "created_at": self.created, "status": status, "model": self.model}
        fixed: dict[str, Any] = {
            "error": None,
            "incomplete_details": None,
            "parallel_tool_calls": True,
            "tool_choice": "auto",
            "tools": [],
        }
        return about | {"output": output} | fixed | self.told | {"usage": None}

    def _message(self, text: str, status: str) -> dict[str, Any]:
        return {"id": self._item, "type": "message", "status": status, "role": "assistant", "content": [_part(text)]}

    def _of_part(self, kind: str, **values: Any) -> str:
        return self._event(kind, item_id=self._item, output_index=0, content_index=0, **values)

    def _event(self, kind: str, **values: Any) -> str:
        self._sent += 1
        return event({"type": kind, "sequence_number": self._sent - 1} | values, kind)


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def usage(finished: Finished) -> dict[str, Any]:
    prompt, written = finished.prompt_tokens, finished.stats.tokens
    return {
        "input_tokens": prompt,
        "input_tokens_details": {"cached_tokens": finished.cached_tokens},
        "output_tokens": written,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": prompt + written,
        "mtpd": finished.figures(),
    }
