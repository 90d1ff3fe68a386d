"""`chat`, `completion`: requests of OpenAI's /v1/chat/completions and /v1/completions, and their answers.
Called by serving/app.py."""

import secrets
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from mtpd_mlx.serving.engine import Finished, Request
from mtpd_mlx.serving.errors import ApiError, invalid
from mtpd_mlx.serving.events import event
from mtpd_mlx.serving.fields import Fields
from mtpd_mlx.serving.forms.common import (
    Reply,
    Served,
    encode_chat,
    made,
    read_list,
    read_model,
    read_sampling,
    read_stops,
)
from mtpd_mlx.serving.forms.structured import constraint_of, read_structure
from mtpd_mlx.serving.forms.tools import NO_TOOLS, Tools, read_tools, read_turn
from mtpd_mlx.serving.forms.weights import read_weights
from mtpd_mlx.serving.parts import NOTHING_APART, Kinds, Part, Splitter, tool_call
from mtpd_mlx.text.answer import Piece

# What both kinds of requests may say without asking for anything.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "service_tier": ("auto", "default"),
}
NEUTRAL_CHAT: dict[str, tuple[Any, ...]] = {
    "logprobs": (False,),
    "top_logprobs": (0,),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "store": (False,),
    "reasoning_effort": (),
}
NEUTRAL_COMPLETION: dict[str, tuple[Any, ...]] = {"logprobs": (0,), "best_of": (1,), "echo": (False,), "suffix": ("",)}
LABELS = ("user", "metadata", "safety_identifier", "prompt_cache_key")  # of the caller's own books: nothing hangs on them


def chat(body: Mapping[str, Any], served: Served) -> tuple[Request, Reply]:
    fields = Fields(body)
    read_model(fields, served)
    messages = [read_turn(m, f"messages[{i}]") for i, m in enumerate(read_list(fields, "messages"))]
    fields.neutral(NEUTRAL_CHAT)
    longest = fields.integer("max_completion_tokens", None, 1)
    tools = read_tools(fields, served)
    prompt, kinds = encode_chat(messages, served, "messages", tools.shown)
    return _request(fields, served, prompt, longest, "messages", kinds, tools)


def completion(body: Mapping[str, Any], served: Served) -> tuple[Request, Reply]:
    fields = Fields(body)
    read_model(fields, served)
    value = fields.raw("prompt")
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str | list):
        value = value[0]
    if isinstance(value, list) and value and all(type(t) is int for t in value):
        size = served.tokenizer.vocab_size
        if wrong := [t for t in value if not 0 <= t < size]:
            raise invalid("prompt", wrong[0], f"token ids 0..{size - 1}")
        prompt = value
    elif isinstance(value, str):
        try:
            prompt = served.encode(value, "prompt")
        except ValueError as error:
            raise ApiError(400, f"prompt: {error}", param="prompt", code="invalid_value") from error
    else:
        raise invalid("prompt", value, "a text, or a list of token ids, one prompt a request")
    fields.neutral(NEUTRAL_COMPLETION)
    return _request(fields, served, prompt, None, "prompt")


def _request(
    fields: Fields,
    served: Served,
    prompt: list[int],
    longest: int | None,
    param: str,
    kinds: Kinds = NOTHING_APART,
    tools: Tools = NO_TOOLS,
) -> tuple[Request, Reply]:
    """What both kinds share."""
    limit = fields.integer("max_tokens", None, 1)
    if longest is not None and limit is not None and longest != limit:
        raise invalid("max_tokens", limit, "the same as max_completion_tokens, or one of the two")
    stream, options = fields.switch("stream"), fields.raw("stream_options")
    if options is not None and (not stream or not isinstance(options, dict) or options.keys() - {"include_usage"}):
        raise invalid("stream_options", options, "include_usage, with stream")
    usage = bool(options and options.get("include_usage"))
    sampling, stop = read_sampling(fields, served.sampling), read_stops(fields, "stop")
    show_drafts = fields.switch("mtpd_drafts")
    fields.neutral(NEUTRAL)
    for name in LABELS:
        fields.raw(name)
    weights, structure = read_weights(fields, served), read_structure(fields)
    constraint = weights.over(constraint_of(structure, tools, served, kinds), served)
    request = Request(prompt, sampling, longest or limit or served.max_tokens, stop, stream, constraint)
    reply = ChatReply(served.names[0], param == "messages", usage, show_drafts, kinds)
    return made(fields, served, prompt, param, request), reply


@dataclass
class ChatReply:
    """One answer under way, of a chat or of a completion."""

    model: str
    chat: bool
    include_usage: bool
    show_drafts: bool
    kinds: Kinds = NOTHING_APART
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        self.id = ("chatcmpl-" if self.chat else "cmpl-") + secrets.token_hex(12)
        self._splitter, self._calls = Splitter(self.kinds), 0

    def whole(self, text: str, finished: Finished) -> dict[str, Any]:
        if not self.chat:
            return self._object("text_completion", {"text": text}, finished.reason) | {"usage": usage(finished)}
        message: dict[str, Any] = {"role": "assistant", "content": None}
        for delta in self._deltas([*self._splitter.add(text), *self._splitter.finish()]):
            for name, value in delta.items():
                message[name] = value if message.get(name) is None else message[name] + value
        if not self._calls:
            message["content"] = message["content"] or ""
        return self._object("chat.completion", {"message": message}, self._reason(finished)) | {"usage": usage(finished)}

    def begin(self) -> Iterator[str]:
        if self.chat:
            yield event(self._chunk({"delta": {"role": "assistant", "content": ""}}))

    def piece(self, pieces: list[Piece]) -> Iterator[str]:
        text = "".join(piece for piece, _ in pieces)
        drafts = {"mtpd_drafts": pieces} if self.show_drafts else {}
        said = self._deltas(self._splitter.add(text)) if self.chat else [{"text": text}]
        for delta in said or ([{}] if drafts else []):
            yield event(self._chunk({"delta": delta} if self.chat else delta) | drafts)
            drafts = {}

    def end(self, text: str, finished: Finished) -> Iterator[str]:
        for delta in self._deltas(self._splitter.finish()) if self.chat else ():
            yield event(self._chunk({"delta": delta}))
        yield event(self._chunk({"delta": {}} if self.chat else {"text": ""}, self._reason(finished)))
        if self.include_usage:
            yield event(self._chunk({}) | {"choices": [], "usage": usage(finished)})
        yield event("[DONE]")

    def failed(self, error: ApiError) -> Iterator[str]:
        yield event(error.body())
        yield event("[DONE]")

    def _deltas(self, parts: list[Part]) -> list[dict[str, Any]]:
        """Thoughts go out under the two names that clients look for."""
        deltas: list[dict[str, Any]] = []
        for part in parts:
            if part.call is not None:
                deltas.append({"tool_calls": [tool_call(self._calls, part.call)]})
                self._calls += 1
            elif part.kind == "reasoning":
                deltas.append({"reasoning_content": part.text, "reasoning": part.text})
            else:
                deltas.append({"content": part.text})
        return deltas

    def _reason(self, finished: Finished) -> str:
        return "tool_calls" if self._calls and finished.reason == "stop" else finished.reason

    def _chunk(self, said: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
        return self._object("chat.completion.chunk" if self.chat else "text_completion", said, reason)

    def _object(self, kind: str, said: dict[str, Any], reason: str | None) -> dict[str, Any]:
        choice = {"index": 0, "logprobs": None, "finish_reason": reason} | said
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": [choice]}


def usage(finished: Finished) -> dict[str, Any]:
    """`mtpd`: tau, tokens per second and rounds by what they verified, beside OpenAI's counts."""
    prompt, written = finished.prompt_tokens, finished.stats.tokens
    return {
        "prompt_tokens": prompt,
        "completion_tokens": written,
        "total_tokens": prompt + written,
        "prompt_tokens_details": {"cached_tokens": finished.cached_tokens},
        "mtpd": finished.figures(),
    }
