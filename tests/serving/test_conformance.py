"""What each endpoint takes, answers and refuses, asked over HTTP: the table of docs/serving.md is made from it.

UPDATE_GOLDEN=1 writes the table anew.
"""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.parrot import Parrot, parrot

TEXT = "<think>so</think>I look. <tool_call>\n" + '{"name": "look", "arguments": {"city": "Oslo"}}\n</tool_call>'
DOCS = Path(__file__).parents[2] / "docs" / "serving.md"
BEGIN, END = "<!-- conformance -->", "<!-- /conformance -->"
FORMS = {"chat/completions": "chat", "completions": "completions", "responses": "responses", "messages": "messages"}
SCHEMA: dict[str, Any] = {"type": "object", "properties": {"city": {"type": "string"}}}
FUNCTION = {"name": "look", "parameters": SCHEMA}
TOOLS: dict[str, Any] = {
    "chat/completions": [{"type": "function", "function": FUNCTION}],
    "responses": [{"type": "function", **FUNCTION}],
    "messages": [{"name": "look", "input_schema": SCHEMA}],
}
Fields = dict[str, Any]
Check = Callable[[str, Fields], bool]  # (form, whole answer) -> is it there?


def usage(form: str, answer: Fields) -> bool:
    found = answer["usage"]
    details = found.get("prompt_tokens_details") or found.get("input_tokens_details") or found
    return bool({"cached_tokens", "cache_read_input_tokens"} & details.keys()) and "mtpd" in found


def thoughts(form: str, answer: Fields) -> bool:
    if form == "chat/completions":
        message = answer["choices"][0]["message"]
        return bool(message["reasoning_content"] == message["reasoning"] == "so")
    blocks = answer["output"] if form == "responses" else answer["content"]
    return blocks[0]["type"] in ("reasoning", "thinking")


def calls(form: str, answer: Fields) -> bool:
    if form == "chat/completions":
        return answer["choices"][0]["finish_reason"] == "tool_calls" and bool(answer["choices"][0]["message"]["tool_calls"])
    blocks = answer["output"] if form == "responses" else answer["content"]
    return blocks[-1]["type"] in ("function_call", "tool_use")


def length(form: str, answer: Fields) -> bool:
    said = answer["usage"]
    return said.get("completion_tokens", said.get("output_tokens")) == 3


def scored(form: str, answer: Fields) -> bool:
    if form == "responses":
        return len(answer["output"][-1]["content"][0]["logprobs"][0]["top_logprobs"]) == 2
    found = answer["choices"][0]["logprobs"]
    return len(found["content"][0]["top_logprobs"] if form == "chat/completions" else found["top_logprobs"][0]) >= 2


def two(form: str, answer: Fields) -> bool:
    return [choice["index"] for choice in answer["choices"]] == [0, 1]


def answered(form: str, answer: Fields) -> bool:
    return "usage" in answer


def each(**fields: Any) -> dict[str, Fields]:
    return dict.fromkeys(FORMS, fields)


def only(*forms: str, **fields: Any) -> dict[str, Fields]:
    return dict.fromkeys(forms, fields)


CHAT, COMPLETE, RESPONSES, MESSAGES = FORMS
LIMIT = {
    CHAT: {"max_completion_tokens": 3},
    COMPLETE: {"max_tokens": 3},
    RESPONSES: {"max_output_tokens": 3},
    MESSAGES: {"max_tokens": 3},
}
JSON = {"type": "json_schema", "schema": SCHEMA, "name": "it"}
BOUND = {
    CHAT: {"response_format": {"type": "json_schema", "json_schema": JSON}},
    COMPLETE: {"response_format": {"type": "json_schema", "json_schema": JSON}},
    RESPONSES: {"text": {"format": JSON}},
    MESSAGES: {"output_config": {"format": JSON}},
}
DEMANDED = {
    CHAT: {"tools": TOOLS[CHAT], "tool_choice": "required"},
    RESPONSES: {"tools": TOOLS[RESPONSES], "tool_choice": "required"},
    MESSAGES: {"tools": TOOLS[MESSAGES], "tool_choice": {"type": "any"}},
}
LOGPROBS = {
    CHAT: {"logprobs": True, "top_logprobs": 2},
    COMPLETE: {"logprobs": 2},
    RESPONSES: {"include": ["message.output_text.logprobs"], "top_logprobs": 2},
}
ROWS: list[tuple[str, dict[str, Fields], Check]] = [
    ("counts of tokens, cached ones apart; tau", each(), usage),
    ("limit of tokens", LIMIT, length),
    ("stop texts", {CHAT: {"stop": ["I l"]}, COMPLETE: {"stop": "I l"}, MESSAGES: {"stop_sequences": ["I l"]}}, answered),
    ("`temperature`, `top_p`, `top_k`, `min_p`", each(temperature=0.5, top_p=0.9, top_k=5, min_p=0.1), answered),
    ("`seed`", each(temperature=1, seed=3), answered),
    ("`repetition_penalty`", each(repetition_penalty=1.1), answered),
    ("thoughts apart", only(CHAT, RESPONSES, MESSAGES), thoughts),
    ("tools, the choice left to the model", {form: {"tools": tools} for form, tools in TOOLS.items()}, calls),
    ("tools, a call demanded", DEMANDED, answered),
    ("JSON by a schema", BOUND, answered),
    ("`regex`, `choice`, `grammar`", only(CHAT, COMPLETE, structured_outputs={"choice": ["a", "b"]}), answered),
    ("`logprobs`, `top_logprobs`", LOGPROBS, scored),
    ("`logit_bias`", only(CHAT, COMPLETE, logit_bias={"5": 1}), answered),
    ("`presence_penalty`, `frequency_penalty`", only(CHAT, COMPLETE, presence_penalty=1), answered),
    ("`n` above 1", only(CHAT, COMPLETE, n=2), two),
    ("`best_of`, `echo`, several prompts", only(COMPLETE, best_of=2, echo=True, prompt=["u:hi|a:", "u:ho|a:"]), two),
]  # fmt: skip


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Parrot]]:
    with parrot(tmp_path_factory.mktemp("parrot"), TEXT) as found:
        yield found


def body(form: str, fields: Fields) -> Fields:
    asked: Fields = {"model": "tiny"}
    if form == COMPLETE:
        asked["prompt"] = "u:hi|a:"
    elif form == RESPONSES:
        asked["input"] = "hi"
    else:
        asked["messages"] = [{"role": "user", "content": "hi"}]
    return asked | ({"max_tokens": 120} if form == MESSAGES else {}) | fields


def ask(url: str, form: str, fields: Fields) -> Any:
    import httpx

    return httpx.post(f"{url}/v1/{form}", json=body(form, fields), timeout=60)


def cell(url: str, form: str, fields: Fields | None, check: Check) -> str:
    if fields is None:
        return ""
    answer = ask(url, form, fields)
    if answer.status_code == 400:
        error = answer.json()["error"]
        assert any(name in error["message"] for name in fields), error
        return "400"
    assert answer.status_code == 200, answer.text
    assert check(form, answer.json()), (form, fields, answer.text)
    return "yes"


def streams(url: str, form: str, fields: Fields) -> str:
    """Its events, to the last one."""
    import httpx

    said = httpx.post(f"{url}/v1/{form}", json=body(form, fields | {"stream": True}), timeout=60).text
    lines = [line for line in said.splitlines() if line.startswith("data: ")]
    last = "[DONE]" if form in (CHAT, COMPLETE) else "message_stop" if form == MESSAGES else "response.completed"
    assert last in lines[-1], said[-300:]
    return "yes"


def table(url: str) -> str:
    rows = [["", *(f"`{name}`" for name in FORMS)], ["---"] * 5]
    rows.append(["streams, to their last event", *(streams(url, form, {}) for form in FORMS)])
    told = {"stream_options": {"include_usage": True}}
    rows.append(
        ["`stream_options.include_usage`", *(streams(url, form, told) for form in (CHAT, COMPLETE)), "always", "always"]
    )
    rows += [[name, *(cell(url, form, asked.get(form), check) for form in FORMS)] for name, asked, check in ROWS]
    rows.append(["a field that nobody knows", *(cell(url, form, {"temprature": 1}, answered) for form in FORMS)])
    return "\n".join("|" + "|".join(f" {each} " if each else " " for each in row) + "|" for row in rows)


def test_the_table_of_the_docs(served: tuple[str, Parrot]) -> None:
    made, docs = table(served[0]), DOCS.read_text(encoding="utf-8")
    before, rest = docs.split(BEGIN)
    held, after = rest.split(END)
    if os.environ.get("UPDATE_GOLDEN"):
        DOCS.write_text(f"{before}{BEGIN}\n\n{made}\n\n{END}{after}", encoding="utf-8")
        return
    assert held.strip() == made, "docs/serving.md: UPDATE_GOLDEN=1 pytest tests/serving/test_conformance.py"


def test_every_refusal_is_in_the_form_of_its_api(served: tuple[str, Parrot]) -> None:
    for form in FORMS:
        error = ask(served[0], form, {"temprature": json.loads("1")}).json()
        assert error["error"]["type"] == "invalid_request_error" and (error.get("type") == "error") == (form == MESSAGES)
