"""From the body of a request to what the engine decodes: `chat_request` and `completion_request`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mtpd_mlx.serving.errors import ApiError, invalid, unsupported
from mtpd_mlx.serving.fields import Fields
from mtpd_mlx.speculative.sampling import Sampling
from mtpd_mlx.text.tokenizer import Tokenizer

MAX_STOPS = 16
ROLES = ("system", "developer", "user", "assistant", "tool")
# What both kinds of requests may say without asking for anything.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "service_tier": ("auto", "default"),
}
NEUTRAL_CHAT: dict[str, tuple[Any, ...]] = {
    "logprobs": (False,),
    "top_logprobs": (0,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "store": (False,),
    "reasoning_effort": (),
}
NEUTRAL_COMPLETION: dict[str, tuple[Any, ...]] = {"logprobs": (0,), "best_of": (1,), "echo": (False,), "suffix": ("",)}
LABELS = ("user", "metadata", "safety_identifier", "prompt_cache_key")  # of the caller's own books: nothing hangs on them


@dataclass(frozen=True)
class Served:
    """What a request is read against: the models' names (the first is said), and defaults of the command line."""

    names: tuple[str, ...]
    tokenizer: Tokenizer
    capacity: int
    sampling: Sampling
    max_tokens: int


@dataclass(frozen=True)
class Request:
    prompt: list[int]
    sampling: Sampling
    max_tokens: int
    stop: tuple[str, ...] = ()
    stream: bool = False
    include_usage: bool = False
    show_drafts: bool = field(default=False)


def chat_request(body: Mapping[str, Any], served: Served) -> Request:
    """Of POST /v1/chat/completions."""
    fields = Fields(body)
    _model(fields, served)
    messages = [_message(m, f"messages[{i}]") for i, m in enumerate(_list(fields, "messages"))]
    try:
        text = served.tokenizer.apply_chat_template(messages, add_generation_prompt=True)
        prompt = served.tokenizer.encode(text, add_special_tokens=False)
    except ValueError as error:
        raise ApiError(400, f"messages: {error}", param="messages", code="invalid_value") from error
    fields.neutral(NEUTRAL_CHAT)
    longest = fields.integer("max_completion_tokens", None, 1)
    return _request(fields, served, prompt, longest, "messages")


def completion_request(body: Mapping[str, Any], served: Served) -> Request:
    """Of POST /v1/completions."""
    fields = Fields(body)
    _model(fields, served)
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
            prompt = served.tokenizer.encode(value)
        except ValueError as error:
            raise ApiError(400, f"prompt: {error}", param="prompt", code="invalid_value") from error
    else:
        raise invalid("prompt", value, "a text, or a list of token ids, one prompt a request")
    fields.neutral(NEUTRAL_COMPLETION)
    return _request(fields, served, prompt, None, "prompt")


def _model(fields: Fields, served: Served) -> None:
    name = fields.text("model")
    if name is not None and name not in served.names:
        raise ApiError(
            404, f"model: got {name[:60]!r}, this server has {served.names[0]!r}", param="model", code="model_not_found"
        )


def _list(fields: Fields, name: str) -> list[Any]:
    value = fields.raw(name)
    if not isinstance(value, list) or not value:
        raise invalid(name, value, "a list of at least one")
    return value


def _message(value: Any, where: str) -> dict[str, str]:
    if not isinstance(value, dict):
        raise invalid(where, value, "an object with role and content")
    role = value.get("role")
    if role not in ROLES:
        raise invalid(f"{where}.role", role, f"one of {', '.join(ROLES)}")
    for name in ("tool_calls", "function_call", "audio"):
        if value.get(name):
            raise unsupported(f"{where}.{name}")
    content = value.get("content")
    if isinstance(content, list):
        content = "".join(_part(part, f"{where}.content[{i}]") for i, part in enumerate(content))
    if not isinstance(content, str):
        raise invalid(f"{where}.content", content, "text")
    return {"role": "system" if role == "developer" else role, "content": content}


def _part(part: Any, where: str) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind in ("text", "input_text", "output_text") and isinstance(part.get("text"), str):
        return str(part["text"])
    if isinstance(kind, str) and kind != "text":
        raise unsupported(f"{where}.type", f"got {kind[:40]!r}, this server reads text alone")
    raise invalid(where, part, 'an object like {"type": "text", "text": ...}')


def _request(fields: Fields, served: Served, prompt: list[int], longest: int | None, param: str) -> Request:
    """What both kinds share."""
    limit = fields.integer("max_tokens", None, 1)
    if longest is not None and limit is not None and longest != limit:
        raise invalid("max_tokens", limit, "the same as max_completion_tokens, or one of the two")
    stream, options = fields.switch("stream"), fields.raw("stream_options")
    if options is not None and (not stream or not isinstance(options, dict) or options.keys() - {"include_usage"}):
        raise invalid("stream_options", options, "include_usage, with stream")
    usage = bool(options and options.get("include_usage"))
    sampling, stop = _sampling(fields, served.sampling), _stops(fields)
    show_drafts = fields.switch("mtpd_drafts")
    fields.neutral(NEUTRAL)
    for name in LABELS:
        fields.raw(name)
    fields.done()
    if not prompt:
        raise invalid(param, "", "at least one token of text")
    if len(prompt) >= served.capacity:
        raise ApiError(
            400,
            f"This model's maximum context length is {served.capacity} tokens, and your {param} has {len(prompt)}.",
            param=param,
            code="context_length_exceeded",
        )
    return Request(prompt, sampling, longest or limit or served.max_tokens, stop, stream, usage, show_drafts)


def _stops(fields: Fields) -> tuple[str, ...]:
    value = fields.raw("stop")
    texts = [value] if isinstance(value, str) else value if value is not None else []
    if not isinstance(texts, list) or len(texts) > MAX_STOPS or not all(isinstance(t, str) and t for t in texts):
        raise invalid("stop", value, f"a text, or a list of at most {MAX_STOPS} texts")
    return tuple(texts)


def _sampling(fields: Fields, default: Sampling) -> Sampling:
    """OpenAI's names; 1 switches top_p off there and 0 here. At temperature 0 what cuts the distribution has no effect."""
    temp = fields.number("temperature", default.temp, 0, 100)
    top_p = fields.number("top_p", default.top_p, 0, 1)
    min_p, top_k = fields.number("min_p", default.min_p, 0, 1), fields.integer("top_k", default.top_k, 0)
    penalty = fields.number("repetition_penalty", default.repetition_penalty, 0.01, 100)
    seed = fields.integer("seed", default.seed, 0, 2**63 - 1)
    if temp == 0:
        return Sampling(repetition_penalty=penalty, seed=seed)
    top_p = 0.0 if top_p == 1 else top_p
    return Sampling(temp=temp, top_p=top_p, min_p=min_p, top_k=top_k or 0, repetition_penalty=penalty, seed=seed)
