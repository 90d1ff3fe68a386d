"""`read_structure`: the constraint of an answer (response formats, vLLM's names, calls of tools that are demanded).
Called by the forms."""

import json
from typing import Any

from mtpd_mlx.serving.errors import ApiError, invalid, unsupported
from mtpd_mlx.serving.fields import Fields
from mtpd_mlx.serving.forms.common import Served
from mtpd_mlx.serving.forms.tools import Tools
from mtpd_mlx.serving.parts import Kinds
from mtpd_mlx.speculative.constrained import Constraint
from mtpd_mlx.text.grammar import Grammar

# vLLM's fields, by kind: in `structured_outputs`, and alone.
STRUCTURED = {"json": "json_schema", "json_object": "json_object", "regex": "regex", "choice": "choice", "grammar": "grammar"}
GUIDED = {"guided_json": "json", "guided_regex": "regex", "guided_choice": "choice", "guided_grammar": "grammar"}
FORMATS = "an object with type text, json_object or json_schema"
Found = tuple[str, str, str]  # the field that asked; kind and text of a Grammar


def read_structure(fields: Fields) -> Found | None:
    """Of OpenAI's response_format or vLLM's fields: at most one of them asks for something."""
    found = [of_format(fields.raw("response_format"), "response_format", "json_schema")]
    structured = fields.raw("structured_outputs")
    if structured is not None:
        if not isinstance(structured, dict) or structured.keys() - STRUCTURED.keys():
            raise invalid("structured_outputs", structured, f"an object with one of {', '.join(STRUCTURED)}")
        found += [_of_kind(name, value, f"structured_outputs.{name}") for name, value in structured.items()]
    found += [_of_kind(kind, value, name) for name, kind in GUIDED.items() if (value := fields.raw(name)) is not None]
    asked = [each for each in found if each is not None]
    if len(asked) > 1:
        raise ApiError(400, f"{asked[1][0]}: not with {asked[0][0]}", param=asked[1][0], code="invalid_value")
    return asked[0] if asked else None


def of_format(value: Any, where: str, inside: str | None) -> Found | None:
    """OpenAI's and Anthropic's objects of a format. `inside`: the field that schema, name and strict stand in; None: beside
    type."""
    if value is None:
        return None
    kind = value.get("type") if isinstance(value, dict) else None
    if kind == "text":
        return None
    if kind == "json_object":
        return where, "json_object", ""
    if kind != "json_schema":
        if isinstance(kind, str):
            raise unsupported(where, f"got the type {kind[:40]!r}, expected text, json_object or json_schema")
        raise invalid(where, value, FORMATS)
    about = value.get(inside) if inside else value
    schema = about.get("schema") if isinstance(about, dict) else None
    if not isinstance(schema, dict):
        raise invalid(f"{where}.{inside}.schema" if inside else f"{where}.schema", schema, "a JSON schema")
    return where, "json_schema", json.dumps(schema)


def _of_kind(name: str, value: Any, where: str) -> Found | None:
    if value is None or (name == "json_object" and value is False):
        return None
    if name == "json":
        text = value if isinstance(value, str) else json.dumps(value) if isinstance(value, dict) else None
        if text is None:
            raise invalid(where, value, "a JSON schema")
    elif name == "json_object":
        if value is not True:
            raise invalid(where, value, "true or false")
        text = ""
    elif name == "choice":
        if not isinstance(value, list) or not value or not all(isinstance(each, str) and each for each in value):
            raise invalid(where, value, "a list of texts")
        text = json.dumps(value)
    elif not isinstance(value, str) or not value:
        raise invalid(where, value, "text")
    else:
        text = value
    return where, STRUCTURED[name], text


def constraint_of(found: Found | None, tools: Tools, served: Served, kinds: Kinds) -> Constraint | None:
    """What the whole answer is bound to. ApiError 400 that names the field where its value is none, or cannot be kept to."""
    if found is None and not tools.bound:
        return None
    where, kind, text = found or ("tools", "calls" if tools.demanded else "text", "")
    thoughts = kinds.thinking if kinds.thinks else None
    if tools.demanded:
        where, kind, text = "tools", "calls", ""
    calls = "" if tools.shown is None else json.dumps(tools.callable)
    try:
        return served.grammars.constraint(Grammar(kind, text, thoughts, calls, tools.several))
    except ValueError as error:
        raise ApiError(400, f"{where}: {error}", param=where, code="invalid_value") from error
