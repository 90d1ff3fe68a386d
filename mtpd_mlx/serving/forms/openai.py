"""`chat`, `completion`: requests of OpenAI's /v1/chat/completions and /v1/completions.
Called by serving/app.py."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mtpd_mlx.serving.engine import Request
from mtpd_mlx.serving.errors import ApiError, invalid, unsupported
from mtpd_mlx.serving.fields import Fields
from mtpd_mlx.serving.forms.choices import read_choices
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
from mtpd_mlx.serving.forms.logprobs import read_chat_logprobs, read_completion_logprobs
from mtpd_mlx.serving.forms.openai_reply import OpenAIReply, Told
from mtpd_mlx.serving.forms.structured import constraint_of, read_structure
from mtpd_mlx.serving.forms.tools import NO_TOOLS, Tools, read_tools, read_turn
from mtpd_mlx.serving.forms.weights import read_weights
from mtpd_mlx.serving.parts import NOTHING_APART, Kinds
from mtpd_mlx.speculative.logprobs import Logprobs

# What requests may say without asking for anything.
NEUTRAL: dict[str, tuple[Any, ...]] = {"service_tier": ("auto", "default")}
NEUTRAL_CHAT: dict[str, tuple[Any, ...]] = {
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "store": (False,),
    "reasoning_effort": ("medium",),
    "verbosity": ("medium",),
    "web_search_options": (),
    "moderation": (),
    "prompt_cache_retention": ("in_memory", "in-memory"),
    "prompt_cache_options": ({},),
}
NEUTRAL_COMPLETION: dict[str, tuple[Any, ...]] = {"suffix": ("",)}
LABELS = ("user", "metadata", "safety_identifier", "prompt_cache_key")  # of the caller's own books: nothing hangs on them
STREAM_OPTIONS = "include_usage, include_obfuscation false, with stream"


def chat(body: Mapping[str, Any], served: Served) -> tuple[list[Request], Reply]:
    fields = Fields(body)
    read_model(fields, served)
    messages = [read_turn(m, f"messages[{i}]") for i, m in enumerate(read_list(fields, "messages"))]
    fields.neutral(NEUTRAL_CHAT)
    longest = fields.integer("max_completion_tokens", None, 1)
    tools = read_tools(fields, served)
    prompt, kinds = encode_chat(messages, served, "messages", tools.shown)
    logprobs = read_chat_logprobs(fields)
    return _requests(fields, served, [prompt], longest, "messages", logprobs, Told(), kinds, tools)


def completion(body: Mapping[str, Any], served: Served) -> tuple[list[Request], Reply]:
    fields = Fields(body)
    read_model(fields, served)
    prompts = read_prompts(fields, served)
    fields.neutral(NEUTRAL_COMPLETION)
    told = Told(echo=tuple(prompts)) if fields.switch("echo") else Told()
    logprobs = read_completion_logprobs(fields)
    return _requests(fields, served, [tokens for _, tokens in prompts], None, "prompt", logprobs, told)


def read_prompts(fields: Fields, served: Served) -> list[tuple[str, list[int]]]:
    """Text and tokens of each: OpenAI's four forms are a text, its token ids, and lists of either."""
    value = fields.raw("prompt")
    several = isinstance(value, list) and value and all(isinstance(each, str | list) for each in value)
    found = [_prompt(each, served) for each in (value if isinstance(value, list) and several else [value])]
    if len(found) > served.most_texts:
        raise invalid("prompt", f"{len(found)} prompts", f"at most {served.most_texts} texts a request")
    return found


def _prompt(value: Any, served: Served) -> tuple[str, list[int]]:
    if isinstance(value, list) and value and all(type(t) is int for t in value):
        size = served.tokenizer.vocab_size
        if wrong := [t for t in value if not 0 <= t < size]:
            raise invalid("prompt", wrong[0], f"token ids 0..{size - 1}")
        return served.tokenizer.decode(value), value
    if not isinstance(value, str):
        raise invalid("prompt", value, "a text, a list of token ids, or a list of such prompts")
    try:
        return value, served.encode(value, "prompt")
    except ValueError as error:
        raise ApiError(400, f"prompt: {error}", param="prompt", code="invalid_value") from error


def _requests(
    fields: Fields,
    served: Served,
    prompts: list[list[int]],
    longest: int | None,
    param: str,
    logprobs: int | None,
    told: Told,
    kinds: Kinds = NOTHING_APART,
    tools: Tools = NO_TOOLS,
) -> tuple[list[Request], Reply]:
    """What both kinds share: a Request for every text. logprobs: how many tokens are told for each place, None: none."""
    limit, chat = fields.integer("max_tokens", None, 1), param == "messages"
    if longest is not None and limit is not None and longest != limit:
        raise invalid("max_tokens", limit, "the same as max_completion_tokens, or one of the two")
    stream, usage = fields.switch("stream"), read_stream_options(fields)
    choices = read_choices(fields, served, len(prompts), chat, stream)
    sampling, stop = read_sampling(fields, served.sampling), read_stops(fields, "stop") + tools.ends
    told = replace(
        told, usage=usage, drafts=fields.switch("mtpd_drafts"), logprobs=None if logprobs is None else served.tokenizer
    )
    fields.neutral(NEUTRAL)
    for name in LABELS:
        fields.raw(name)
    weights, structure = read_weights(fields, served), read_structure(fields)
    scored = logprobs is not None or choices.ranked
    requests = []
    for prompt in prompts:
        for each in choices.samplings(sampling):
            constraint = weights.over(constraint_of(structure, tools, served, kinds), served, always=scored)
            seen = Logprobs(logprobs or 0, bool(told.echo)) if scored else None
            requests.append(Request(prompt, each, longest or limit or served.max_tokens, stop, stream, constraint, seen))
    reply = OpenAIReply(served.names[0], chat, told, kinds, choices, len(prompts))
    return made(fields, served, param, requests), reply


def read_stream_options(fields: Fields) -> bool:
    """Whether the last chunk tells of the tokens."""
    options = fields.raw("stream_options")
    if options is None:
        return False
    known = isinstance(options, dict) and not options.keys() - {"include_usage", "include_obfuscation"}
    if not known or not fields.switch("stream") or not all(isinstance(each, bool | None) for each in options.values()):
        raise invalid("stream_options", options, STREAM_OPTIONS)
    if options.get("include_obfuscation"):
        raise unsupported("stream_options.include_obfuscation")
    return bool(options.get("include_usage"))
