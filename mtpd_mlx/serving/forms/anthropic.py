"""`messages`, `count_tokens`: requests of Anthropic's /v1/messages.
Called by serving/app.py."""

from collections.abc import Mapping
from typing import Any

from mtpd_mlx.serving.engine import Request
from mtpd_mlx.serving.errors import invalid, unsupported
from mtpd_mlx.serving.fields import Fields
from mtpd_mlx.serving.forms.anthropic_reply import MessagesReply
from mtpd_mlx.serving.forms.anthropic_reply import error_body as error_body
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
from mtpd_mlx.serving.forms.structured import Found, constraint_of, of_format
from mtpd_mlx.serving.forms.tools import Tools, checked_tools, chosen, read_call
from mtpd_mlx.serving.parts import Kinds

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "thinking": ({"type": "disabled"},),
    "service_tier": ("auto", "standard_only"),
    "container": (),
    "context_management": (),
    "mcp_servers": ([],),
    "speed": ("standard",),
    "diagnostics": (),
    "inference_geo": (),
}
LABELS = ("metadata", "user_profile_id", "workspace_id", "cache_control")  # what begins alike stays cached without being asked
BILLING = "x-anthropic-billing-header"  # a block that changes with every request: with it nothing would stay cached
CHOICES = {"auto": "auto", "any": "required", "none": "none", "tool": "named"}
THOUGHTS = ("thinking", "redacted_thinking")  # blocks that are not repeated to the model


def messages(body: Mapping[str, Any], served: Served) -> tuple[list[Request], Reply]:
    fields = Fields(body)
    prompt, tools, kinds = _prompt(fields, served)
    longest = fields.integer("max_tokens", None, 1)
    if longest is None:
        raise invalid("max_tokens", None, "an integer of at least 1")
    stream, stop = fields.switch("stream"), read_stops(fields, "stop_sequences") + tools.ends
    bound = constraint_of(_format(fields), tools, served, kinds)
    request = Request(prompt, read_sampling(fields, served.sampling), longest, stop, stream, bound)
    read_neutral(fields)
    return made(fields, served, "messages", [request]), MessagesReply(served.names[0], len(prompt), kinds)


def count_tokens(body: Mapping[str, Any], served: Served) -> int:
    fields = Fields(body)
    prompt, _, _ = _prompt(fields, served)
    _format(fields)
    read_neutral(fields)
    fields.done()
    return len(prompt)


def read_neutral(fields: Fields) -> None:
    """What is taken without an effect."""
    fields.neutral(NEUTRAL)
    for name in LABELS:
        fields.raw(name)


def _prompt(fields: Fields, served: Served) -> tuple[list[int], Tools, Kinds]:
    read_model(fields, served)
    said = [turn for i, m in enumerate(read_list(fields, "messages")) for turn in _turns(m, f"messages[{i}]")]
    if said[-1]["role"] == "assistant":
        raise unsupported("messages", "the last message is the assistant's: this server cannot go on with one")
    system = fields.raw("system")
    if isinstance(system, list):
        system = [s for s in system if not (isinstance(s, dict) and str(s.get("text", "")).startswith(BILLING))]
    text = "" if system is None else read_text(system, "system")
    tools = _tools(fields, served)
    whole = [*([{"role": "system", "content": text}] if text else []), *said]
    prompt, kinds = encode_chat(whole, served, "messages", tools.shown)
    return prompt, tools, kinds


def _turns(message: Any, where: str) -> list[dict[str, Any]]:
    """One message as templates take it: results of tools are messages of their own, before what the user says."""
    content = message.get("content") if isinstance(message, dict) else None
    if not isinstance(content, list):
        return [_checked(dict(read_message(message, where)))]
    text, calls, results = list[Any](), list[dict[str, Any]](), list[dict[str, Any]]()
    for i, block in enumerate(content):
        kind, place = block.get("type") if isinstance(block, dict) else None, f"{where}.content[{i}]"
        if kind == "tool_use":
            calls.append(read_call({"name": block.get("name"), "arguments": block.get("input")}, place))
        elif kind == "tool_result":
            said = block.get("content")
            results.append({"role": "tool", "content": "" if said is None else read_text(said, f"{place}.content")})
        elif kind not in THOUGHTS:
            text.append(block)
    own = _checked(dict(read_message(message | {"content": text}, where)))
    for name, found, role in (("tool_use", calls, "assistant"), ("tool_result", results, "user")):
        if found and own["role"] != role:
            raise invalid(f"{where}.content", name, f"no such block in a message of {own['role']}")
    if calls:
        own["tool_calls"] = calls
    return [*results, *([own] if text or calls or not results else [])]


def _checked(message: dict[str, Any]) -> dict[str, Any]:
    if message["role"] not in ("user", "assistant"):
        raise invalid("messages", message["role"], "messages of user and assistant")
    return message


def _tools(fields: Fields, served: Served) -> Tools:
    value, choice = fields.raw("tools"), fields.raw("tool_choice")
    if not isinstance(value, list | None):
        raise invalid("tools", value, "a list")
    for i, tool in enumerate(value or []):
        if isinstance(tool, dict) and tool.get("type") not in (None, "custom"):
            raise unsupported(f"tools[{i}].type", f"got {str(tool['type'])[:40]!r}, this server has none of its own")
    tools = checked_tools([{"type": "function", "function": _function(tool)} for tool in value or []], "tools")
    kind = None if choice is None else choice.get("type") if isinstance(choice, dict) else choice
    if kind is not None and kind not in CHOICES:
        raise invalid("tool_choice", choice, "an object with type auto, any, tool or none")
    several = not (isinstance(choice, dict) and choice.get("disable_parallel_tool_use") is True)
    name = choice.get("name") if kind == "tool" and isinstance(choice, dict) else None
    if kind == "tool" and not isinstance(name, str):
        raise invalid("tool_choice.name", name, "the name of one of the tools")
    return chosen(tools, None if kind is None else CHOICES[kind], name, several, served)


def _function(tool: Any) -> Any:
    if not isinstance(tool, dict):
        return tool
    named = {"name": "name", "description": "description", "input_schema": "parameters", "strict": "strict"}
    return {ours: tool[theirs] for theirs, ours in named.items() if tool.get(theirs) is not None}


def _format(fields: Fields) -> Found | None:
    """output_config.format, and its older name output_format."""
    older, config = of_format(fields.raw("output_format"), "output_format", None), fields.raw("output_config")
    if config is None:
        return older
    if not isinstance(config, dict) or config.keys() - {"format"}:
        raise unsupported("output_config", "this server knows format alone")
    return of_format(config.get("format"), "output_config.format", None) or older
