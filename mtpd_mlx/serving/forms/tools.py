"""Tools in OpenAI's form: their descriptions, and the messages of a conversation that calls them."""

import json
from typing import Any

from mtpd_mlx.serving.errors import ApiError, invalid, unsupported
from mtpd_mlx.serving.fields import Fields
from mtpd_mlx.serving.forms.common import Served, read_message, read_text
from mtpd_mlx.serving.parts import CALL

TOOL = 'an object like {"type": "function", "function": {"name": ...}}'


def read_tools(fields: Fields, served: Served) -> list[dict[str, Any]] | None:
    """What the template shows the model; None without tools, or where none may be called. ApiError 400 where the model's
    template has no form for calls that this server reads, or a call is demanded (which needs a grammar)."""
    value, choice = fields.raw("tools"), fields.raw("tool_choice")
    if choice not in (None, "none", "auto"):
        raise unsupported("tool_choice", "this server leaves the choice to the model: expected auto or none")
    if value is None or value == []:
        return None
    if not isinstance(value, list):
        raise invalid("tools", value, "a list")
    for i, tool in enumerate(value):
        function = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str) or tool.get("type") != "function":
            raise invalid(f"tools[{i}]", tool, TOOL)
    try:
        template = served.tokenizer.template(value)
    except ValueError as error:
        raise ApiError(400, f"tools: {error}", param="tools", code="invalid_value") from error
    if CALL[0] not in template:
        raise unsupported("tools", f"the model's chat template has no {CALL[0]}, the one form of calls that this server reads")
    return None if choice == "none" else value


def read_turn(value: Any, where: str) -> dict[str, Any]:
    """A message, calls of tools and their results among them."""
    calls = value.get("tool_calls") if isinstance(value, dict) else None
    if not calls:
        return dict(read_message(value, where))
    if value.get("role") != "assistant" or not isinstance(calls, list):
        raise invalid(f"{where}.tool_calls", calls, "a list of calls, in a message of the assistant")
    content = value.get("content")
    text = "" if content is None else read_text(content, f"{where}.content")
    made = [_call(call, f"{where}.tool_calls[{i}]") for i, call in enumerate(calls)]
    return {"role": "assistant", "content": text, "tool_calls": made}


def _call(value: Any, where: str) -> dict[str, Any]:
    """Templates take the arguments as an object."""
    function = value.get("function") if isinstance(value, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise invalid(where, value, TOOL)
    arguments = function.get("arguments", "{}")
    try:
        given = json.loads(arguments) if isinstance(arguments, str) else arguments
    except ValueError:
        given = None
    if not isinstance(given, dict):
        raise invalid(f"{where}.function.arguments", arguments, "a JSON object as text")
    return {"type": "function", "function": {"name": function["name"], "arguments": given}}
