"""`read_tools`, `read_turn`: tools in OpenAI's form, and the messages of a conversation that calls them.
Called by the forms."""

import json
from dataclasses import dataclass
from typing import Any

from mtpd_mlx.serving.errors import ApiError, invalid, unsupported
from mtpd_mlx.serving.fields import Fields
from mtpd_mlx.serving.forms.common import Served, read_message, read_text
from mtpd_mlx.serving.parts import CALL

TOOL = 'an object like {"type": "function", "function": {"name": ...}}'


@dataclass(frozen=True)
class Tools:
    """shown: what the template shows the model, in OpenAI's form; None: nothing may be called. name: the one function that may
    be called. demanded: the answer is a call. several: it may be more than one."""

    shown: list[dict[str, Any]] | None = None
    name: str | None = None
    demanded: bool = False
    several: bool = True

    @property
    def callable(self) -> list[dict[str, Any]]:
        return [t for t in self.shown or [] if self.name in (None, t["function"]["name"])]

    @property
    def ends(self) -> tuple[str, ...]:
        """Stop texts: the first call that the model makes of its own accord is the last thing it says, where one is allowed."""
        return (CALL[1],) if self.shown and not self.several and not self.demanded else ()

    @property
    def bound(self) -> bool:
        """Calls are held to the descriptions: where one is demanded, or one of the functions is strict."""
        return self.demanded or any(t["function"].get("strict") for t in self.callable)


NO_TOOLS = Tools()


def read_tools(fields: Fields, served: Served) -> Tools:
    """Of chat completions."""
    choice, several = fields.raw("tool_choice"), fields.switch("parallel_tool_calls", True)
    tools = checked_tools(fields.raw("tools"), "tools")
    name = None
    if isinstance(choice, dict):
        function = choice.get("function")
        name = function.get("name") if choice.get("type") == "function" and isinstance(function, dict) else None
    return chosen(tools, choice if name is None else "named", name, several, served)


def checked_tools(value: Any, where: str) -> list[dict[str, Any]]:
    """In OpenAI's form for chats. ApiError 400 names the one that is not."""
    if not isinstance(value, list | None):
        raise invalid(where, value, "a list")
    for i, tool in enumerate(value or []):
        function = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str) or tool.get("type") != "function":
            raise invalid(f"{where}[{i}]", tool, TOOL)
        if not isinstance(function.get("parameters"), dict | None) or not isinstance(function.get("strict"), bool | None):
            raise invalid(f"{where}[{i}].function", function, "parameters that are a JSON schema, strict true or false")
    return value or []


def chosen(tools: list[dict[str, Any]], choice: Any, name: str | None, several: bool, served: Served) -> Tools:
    """choice: None, "auto", "none", "required", or "named", and then `name`. ApiError 400 for any other, and where the model's
    template has no form for calls that this server reads."""
    if choice not in (None, "auto", "none", "required", "named"):
        raise invalid("tool_choice", choice, "auto, none, required, or a function's name")
    demanded = choice in ("required", "named")
    if not tools:
        if demanded:
            raise invalid("tool_choice", choice, "tools to choose from")
        return NO_TOOLS
    if name is not None and name not in [t["function"]["name"] for t in tools]:
        raise invalid("tool_choice", name, "the name of one of the tools")
    try:
        template = served.tokenizer.template(tools)
    except ValueError as error:
        raise ApiError(400, f"tools: {error}", param="tools", code="invalid_value") from error
    if CALL[0] not in template:
        raise unsupported("tools", f"the model's chat template has no {CALL[0]}, the one form of calls that this server reads")
    return NO_TOOLS if choice == "none" else Tools(tools, name, demanded, several and name is None)


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
    function = value.get("function") if isinstance(value, dict) else None
    return read_call(function, f"{where}.function")


def read_call(function: Any, where: str) -> dict[str, Any]:
    """name and arguments of a call; templates take the arguments as an object."""
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise invalid(where, function, 'an object with "name" and "arguments"')
    arguments = function.get("arguments", "{}")
    try:
        given = json.loads(arguments) if isinstance(arguments, str) else arguments
    except ValueError:
        given = None
    if not isinstance(given, dict):
        raise invalid(f"{where}.arguments", arguments, "a JSON object")
    return {"type": "function", "function": {"name": function["name"], "arguments": given}}
