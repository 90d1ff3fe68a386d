"""Bound answers over HTTP, on both runtimes: they fit what was asked for, drafts or none; what cannot be kept to is refused."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from helpers.serving import events, serving, with_template
from mtpd_onnx.commands.serve import OnnxRuntime
from mtpd_onnx.export.export import export_checkpoint
from tiny import write_base, write_checkpoint

from mtpd_mlx.commands.serve import MLXRuntime
from mtpd_mlx.options.base import RunnableOptions
from mtpd_mlx.options.decode import DecodingConfig
from mtpd_mlx.options.export import ExportOptions
from mtpd_mlx.options.runtime import RuntimeOptions
from mtpd_mlx.text.grammar import JSON_OPTIONS

CHAT, COMPLETE = "/v1/chat/completions", "/v1/completions"
TEMPLATE = (
    "{% for t in tools or [] %}{{ t.function.name }};{% endfor %}{% for m in messages %}{{ m.role[0] }}:{{ m.content }}\n"
    "{% endfor %}a:{# <tool_call> </tool_call> #}"
)
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 6}, "n": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "n"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "it", "strict": True, "schema": SCHEMA}}
TOOLS = [
    {"type": "function", "function": {"name": "look", "parameters": SCHEMA, "strict": True}},
    {"type": "function", "function": {"name": "wait"}},
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(checkpoint, its export); texts of the base change from token to token."""
    folder = tmp_path_factory.mktemp("structured")
    checkpoint = write_checkpoint(folder / "heads", with_template(write_base(folder / "base", scale=6.0), TEMPLATE), 3)
    export_checkpoint(checkpoint, folder / "onnx", ExportOptions())
    return checkpoint, folder / "onnx"


def runtime(folders: tuple[Path, Path], kind: str, drafts: int | None) -> Any:
    if kind == "mlx":
        return MLXRuntime(RunnableOptions(checkpoint=str(folders[0])), DecodingConfig(), drafts)
    return OnnxRuntime(RuntimeOptions(folder=folders[1]), drafts)


@pytest.fixture(scope="module", params=["mlx", "onnx"])
def asked(request: pytest.FixtureRequest, folders: tuple[Path, Path]) -> Iterator[tuple[Any, Any]]:
    """A client of a server with drafts, and one without."""
    with (
        serving(lambda: runtime(folders, request.param, None), max_tokens=120) as (client, _),
        serving(lambda: runtime(folders, request.param, 0), max_tokens=120) as (plain, _),
    ):
        yield client, plain


@pytest.fixture(autouse=True)
def little_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """A random model fills all the white space that it is given, a character a token."""
    monkeypatch.setitem(JSON_OPTIONS, "whitespace_pattern", r"[ \n]{1,2}")


def user(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


def answers(asked: tuple[Any, Any], path: str, body: dict[str, Any]) -> dict[str, Any]:
    """The choice, which is the same with drafts and without."""
    given = [client.post(path, json=body) for client in asked]
    assert [each.status_code for each in given] == [200, 200], given[0].text
    first, second = (each.json()["choices"][0] for each in given)
    if not body.get("temperature") and "tool_calls" not in str(first):
        assert first == second
    return dict(first)


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.9, "seed": 5, "top_p": 0.9}])
def test_answers_fit_their_schema(asked: tuple[Any, Any], sampling: dict[str, Any]) -> None:
    for i in range(4):
        said = answers(asked, CHAT, {"messages": user(f"tell {i}"), "response_format": FORMAT} | sampling)
        assert said["finish_reason"] == "stop"
        jsonschema.validate(json.loads(said["message"]["content"]), SCHEMA)


BOUND = [
    ({"structured_outputs": {"regex": r"[a-c]{3}-\d\d"}}, r"[a-c]{3}-\d\d"),
    ({"guided_regex": r"(ab){2,4}"}, r"(ab){2,4}"),
    ({"structured_outputs": {"choice": ["red", "green."]}}, r"red|green\."),
    ({"guided_choice": ["yes", "no"]}, "yes|no"),
    ({"structured_outputs": {"grammar": 'start: "x" ("y" | "z")'}}, "x[yz]"),
    ({"guided_grammar": 'root ::= "a" | "b"'}, "[ab]"),
]


@pytest.mark.parametrize(("fields", "pattern"), BOUND)
@pytest.mark.parametrize("path", [CHAT, COMPLETE])
def test_answers_fit_other_grammars(asked: tuple[Any, Any], path: str, fields: dict[str, Any], pattern: str) -> None:
    said = answers(asked, path, ({"messages": user("go")} if path == CHAT else {"prompt": "go"}) | fields)
    text = said["message"]["content"] if path == CHAT else said["text"]
    assert re.fullmatch(pattern, text) and said["finish_reason"] == "stop"


def test_json_by_vllm_s_names(asked: tuple[Any, Any]) -> None:
    for fields in ({"guided_json": SCHEMA}, {"structured_outputs": {"json": json.dumps(SCHEMA)}}):
        text = answers(asked, COMPLETE, {"prompt": "go", **fields})["text"]
        jsonschema.validate(json.loads(text), SCHEMA)


def test_a_stream_says_the_same(asked: tuple[Any, Any]) -> None:
    body = {"messages": user("tell"), "response_format": FORMAT}
    whole = answers(asked, CHAT, body)["message"]["content"]
    with asked[0].stream("POST", CHAT, json=body | {"stream": True}) as stream:
        said = events(stream.iter_lines())
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in said) == whole


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "look"}}])
def test_demanded_calls_fit_their_tool(asked: tuple[Any, Any], choice: Any) -> None:
    body = {"messages": user("do"), "tools": TOOLS[:1], "tool_choice": choice, "parallel_tool_calls": False}
    said = answers(asked, CHAT, body)
    (call,) = said["message"]["tool_calls"]
    assert said["finish_reason"] == "tool_calls" and call["function"]["name"] == "look"
    jsonschema.validate(json.loads(call["function"]["arguments"]), SCHEMA)


def test_bound_and_free_requests_take_turns(asked: tuple[Any, Any]) -> None:
    free = [answers(asked, CHAT, {"messages": user("a b c"), "max_tokens": 20}) for _ in range(2)]
    bound = answers(asked, CHAT, {"messages": user("a b c"), "response_format": FORMAT})
    again = answers(asked, CHAT, {"messages": user("a b c"), "response_format": FORMAT})
    assert free[0] == free[1] == answers(asked, CHAT, {"messages": user("a b c"), "max_tokens": 20})
    assert bound == again


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema", "expected a JSON schema"),
    ({"response_format": "json"}, "response_format", "expected an object with type"),
    ({"response_format": FORMAT, "guided_regex": "a"}, "guided_regex", "not with response_format"),
    ({"structured_outputs": {"jsn": {}}}, "structured_outputs", "expected an object with one of json"),
    ({"structured_outputs": {"choice": []}}, "structured_outputs.choice", "expected a list of texts"),
    ({"structured_outputs": {"json_object": 1}}, "structured_outputs.json_object", "expected true or false"),
    ({"guided_regex": "(a"}, "guided_regex", "unclosed group"),
    ({"guided_json": {"unevaluatedItems": False}}, "guided_json", "Unimplemented keys"),
    ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice", "one of the tools"),
    ({"tools": [{"type": "function", "function": {"name": "f", "parameters": 3}}]}, "tools[0].function", "JSON schema"),
]


@pytest.mark.parametrize(("fields", "param", "message"), REFUSED)
def test_what_cannot_be_kept_to_is_refused(asked: tuple[Any, Any], fields: dict[str, Any], param: str, message: str) -> None:
    answer = asked[0].post(CHAT, json={"messages": user("x")} | fields)
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["param"] == param and message in error["message"]


def test_the_other_forms(asked: tuple[Any, Any]) -> None:
    told = {"format": {"type": "json_schema", "name": "it", "schema": SCHEMA, "strict": True}}
    output = answered(asked, "/v1/responses", {"input": "tell", "text": told})["output"]
    jsonschema.validate(json.loads(output[0]["content"][0]["text"]), SCHEMA)
    tool = {"type": "function", "name": "look", "parameters": SCHEMA, "strict": True}
    body = {"input": "do", "tools": [tool], "tool_choice": {"type": "function", "name": "look"}}
    (call,) = answered(asked, "/v1/responses", body)["output"]
    jsonschema.validate(json.loads(call["arguments"]), SCHEMA)
    said = {"messages": user("tell"), "max_tokens": 120}
    for fields in ({"output_config": {"format": told["format"]}}, {"output_format": told["format"]}):
        (block,) = answered(asked, "/v1/messages", said | fields)["content"]
        jsonschema.validate(json.loads(block["text"]), SCHEMA)
    choice = {"type": "any", "disable_parallel_tool_use": True}
    body = said | {"tools": [{"name": "look", "input_schema": SCHEMA}], "tool_choice": choice}
    answer = answered(asked, "/v1/messages", body)
    (block,) = answer["content"]
    assert answer["stop_reason"] == "tool_use" and block["name"] == "look"
    jsonschema.validate(block["input"], SCHEMA)


def answered(asked: tuple[Any, Any], path: str, body: dict[str, Any]) -> dict[str, Any]:
    answer = asked[0].post(path, json=body)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


@pytest.mark.parametrize("path", [CHAT, COMPLETE])
def test_biases_and_penalties(asked: tuple[Any, Any], path: str) -> None:
    """With drafts and without the same text; a banned token does not come, and with penalties fewer come twice."""
    body = ({"messages": user("go")} if path == CHAT else {"prompt": "go"}) | {"max_tokens": 24}
    free = asked[0].post(path, json=body).json()["choices"][0]
    text = free["message"]["content"] if path == CHAT else free["text"]
    most = max(set(text), key=text.count)
    token = str(ord(most) - 32 + 2)  # tiny.write_tokenizer's ids
    banned = answers(asked, path, body | {"logit_bias": {token: -100}})
    assert most not in (banned["message"]["content"] if path == CHAT else banned["text"])
    varied = answers(asked, path, body | {"presence_penalty": 2, "frequency_penalty": 2})
    said = varied["message"]["content"] if path == CHAT else varied["text"]
    assert len(set(said)) / len(said) > len(set(text)) / len(text) or len(set(text)) == len(text)
