"""`responses`: requests of OpenAI's /v1/responses. Nothing is stored: each brings its whole conversation.
Called by serving/app.py."""

from collections.abc import Mapping
from typing import Any

from mtpd_mlx.serving.engine import Request
from mtpd_mlx.serving.errors import invalid, unsupported
from mtpd_mlx.serving.fields import Fields
from mtpd_mlx.serving.forms.common import Reply, Served, encode_chat, made, read_message, read_model, read_sampling, read_text
from mtpd_mlx.serving.forms.logprobs import MOST, Scores
from mtpd_mlx.serving.forms.responses_reply import ResponsesReply
from mtpd_mlx.serving.forms.structured import Found, constraint_of, of_format
from mtpd_mlx.serving.forms.tools import Tools, checked_tools, chosen, read_call
from mtpd_mlx.serving.forms.weights import NO_WEIGHTS
from mtpd_mlx.speculative.logprobs import Logprobs

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "truncation": ("disabled",),
    "background": (False,),
    "reasoning": ({},),
    "previous_response_id": (),
    "conversation": (),
    "prompt": (),
    "stream_options": ({}, {"include_obfuscation": False}),
    "prompt_cache_retention": ("in_memory", "in-memory"),
    "prompt_cache_options": ({},),
    "context_management": ([],),
    "background_options": ({},),
    "access_programs": ([], {}),
    "image": (),
    "moderation": (),
    "max_tool_calls": (),
    "service_tier": ("auto", "default"),
}
LOGPROBS = "message.output_text.logprobs"
INCLUDED = (LOGPROBS, "reasoning.encrypted_content")  # of the latter there is none: thoughts come as they are
LABELS = ("user", "metadata", "safety_identifier", "prompt_cache_key", "store")


def responses(body: Mapping[str, Any], served: Served) -> tuple[list[Request], Reply]:
    fields = Fields(body)
    read_model(fields, served)
    instructions, value = fields.text("instructions"), fields.raw("input")
    items = [{"role": "user", "content": value}] if isinstance(value, str) else value
    if not isinstance(items, list) or not items:
        raise invalid("input", value, "a text, or a list of messages")
    said = conversation(items)
    if instructions:
        said = [{"role": "system", "content": instructions}, *said]
    several, tools = fields.switch("parallel_tool_calls", True), fields.raw("tools")
    choice = fields.raw("tool_choice")
    callable = _tools(tools, choice, several, served)
    prompt, kinds = encode_chat(said, served, "input", callable.shown)
    longest = fields.integer("max_output_tokens", served.max_tokens, 1) or served.max_tokens
    logprobs = read_logprobs(fields)
    bound = constraint_of(_format(fields), callable, served, kinds)
    if logprobs is not None:
        bound = NO_WEIGHTS.over(bound, served, always=True)
    sampling = read_sampling(fields, served.sampling)
    request = Request(prompt, sampling, longest, callable.ends, fields.switch("stream"), bound, logprobs)
    fields.neutral(NEUTRAL)
    about = {name: fields.raw(name) for name in LABELS}
    told = {"instructions": instructions, "metadata": about["metadata"] or {}, "max_output_tokens": longest}
    told |= {"parallel_tool_calls": several, "tool_choice": choice or "auto", "tools": tools or []}
    told |= {"temperature": request.sampling.temp, "top_p": request.sampling.top_p or 1.0}
    told |= {"top_logprobs": 0 if logprobs is None else logprobs.count}
    scores = None if logprobs is None else Scores(served.tokenizer)
    return made(fields, served, "input", [request]), ResponsesReply(served.names[0], told, kinds, scores)


def read_logprobs(fields: Fields) -> Logprobs | None:
    """`include` asks for those of the chosen tokens, `top_logprobs` for others, too."""
    include, top = fields.raw("include"), fields.integer("top_logprobs", None, 0, MOST)
    if not isinstance(include, list | None):
        raise invalid("include", include, "a list")
    if unknown := [each for each in include or [] if each not in INCLUDED]:
        raise unsupported("include", f"got {str(unknown[0])[:40]!r}, this server includes {LOGPROBS} alone")
    return Logprobs(top or 0) if top or LOGPROBS in (include or []) else None


def conversation(items: list[Any]) -> list[dict[str, Any]]:
    """Messages as templates take them. Calls belong to the message of the assistant before them; thoughts are not repeated."""
    said: list[dict[str, Any]] = []
    for i, item in enumerate(items):
        where = f"input[{i}]"
        kind = item.get("type", "message") if isinstance(item, dict) else "message"
        if kind == "message":
            said.append(dict(read_message(item, where)))
        elif kind == "function_call":
            if not said or said[-1]["role"] != "assistant":
                said.append({"role": "assistant", "content": ""})
            said[-1].setdefault("tool_calls", []).append(read_call(item, where))
        elif kind == "function_call_output":
            said.append({"role": "tool", "content": read_text(item.get("output"), f"{where}.output")})
        elif kind != "reasoning":
            raise unsupported(f"{where}.type", f"got {str(kind)[:40]!r}, this server reads messages, calls and their results")
    return said


def _tools(value: Any, choice: Any, several: bool, served: Served) -> Tools:
    if not isinstance(value, list | None):
        raise invalid("tools", value, "a list")
    for i, tool in enumerate(value or []):
        if isinstance(tool, dict) and tool.get("type") not in (None, "function"):
            raise unsupported(f"tools[{i}].type", f"got {str(tool['type'])[:40]!r}, this server has none of its own")
    inner = [{"type": "function", "function": _function(tool)} for tool in value or []]
    name = choice.get("name") if isinstance(choice, dict) and choice.get("type") == "function" else None
    return chosen(checked_tools(inner, "tools"), choice if name is None else "named", name, several, served)


def _function(tool: Any) -> Any:
    if not isinstance(tool, dict):
        return tool
    return {name: tool[name] for name in ("name", "description", "parameters", "strict") if tool.get(name) is not None}


def _format(fields: Fields) -> Found | None:
    value = fields.raw("text")
    if value is None:
        return None
    if not isinstance(value, dict):
        raise invalid("text", value, "an object with format")
    if value.get("verbosity") not in (None, "medium"):
        raise unsupported("text.verbosity")
    if unknown := sorted(value.keys() - {"format", "verbosity"}):
        raise unsupported(f"text.{unknown[0]}")
    return of_format(value.get("format"), "text.format", None)
