"""`render`: chat templates as transformers renders them (sandboxed Jinja, the same filters, globals and tags).
Called by text/tokenizer.py, prompts.py, rows.py and chat.py.

jinja2 is imported when a template is first rendered: raw prompts do not need it.
"""

import json
from collections.abc import Callable
from datetime import datetime
from functools import lru_cache
from typing import Any

Messages = list[dict[str, Any]]
Tools = list[dict[str, Any]]  # descriptions of functions, as templates that know tools show them to the model
Templates = str | dict[str, str] | None  # one, several by name, or none
DEFAULT, WITH_TOOLS = "default", "tool_use"  # the names that mean something
REASONING = ("reasoning_content", "thinking", "reasoning")  # names that a message's thoughts come under; the first is written


def choose(templates: Templates, tools: Tools | None) -> str:
    """The template for a conversation with these tools. ValueError: none, or none of several is meant for it."""
    if templates is None:
        raise ValueError("the tokenizer has no chat template")
    if isinstance(templates, str):
        return templates
    for name in (WITH_TOOLS, DEFAULT) if tools is not None else (DEFAULT,):
        if name in templates:
            return templates[name]
    held = ", ".join(repr(name) for name in sorted(templates)) or "none"
    raise ValueError(f"chat template: got several by name ({held}), expected {DEFAULT!r} among them")


def check_tools(place: str, value: Any) -> Tools | None:
    """The "tools" of a row at `place`. ValueError where they are not a list of objects."""
    if value is not None and not (isinstance(value, list) and all(isinstance(t, dict) for t in value)):
        raise ValueError(f'{place}: "tools": expected a list of objects')
    return value


def render(
    template: str,
    messages: Messages,
    add_generation_prompt: bool,
    special_tokens: dict[str, str],
    tools: Tools | None = None,
) -> str:
    """The conversation as text. ValueError in one line where the template is broken or refuses the messages."""
    from jinja2 import TemplateError

    try:
        rendered: str = _compile(template).render(
            messages=[_as_templates_expect(message) for message in messages],
            tools=tools,
            documents=None,
            add_generation_prompt=add_generation_prompt,
            **special_tokens,
        )
        return rendered
    except (TemplateError, LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"chat template: {reason}") from error


def _as_templates_expect(message: dict[str, Any]) -> dict[str, Any]:
    """A key without a value is left out, and thoughts come under the name that templates read."""
    held = {key: value for key, value in message.items() if value is not None}
    thoughts = next((held[name] for name in REASONING if name in held), None)
    return held if thoughts is None else {"thinking": thoughts} | held | {REASONING[0]: thoughts}


@lru_cache(maxsize=8)
def _compile(template: str) -> Any:
    from jinja2 import TemplateError, nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """{% generation %} marks what the assistant says (for training masks); its content is rendered as it is."""

        tags = {"generation"}  # noqa: RUF012 (the base class has it so)

        def parse(self, parser: Parser) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.CallBlock(self.call_method("_content"), [], [], body).set_lineno(line)

        def _content(self, caller: Callable[[], str]) -> str:
            return caller()

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment.from_string(template)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own filter escapes HTML; a model was trained on plain JSON."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
