"""Every field that the openai and anthropic clients can send: it works, has no effect by design, or is refused by name.

The list of docs/serving.md is made from it (UPDATE_GOLDEN=1).
"""

import os
from collections.abc import Iterator
from typing import Any

import pytest
from helpers.parrot import parrot
from test_conformance import CHAT, COMPLETE, DOCS, FORMS, FUNCTION, MESSAGES, RESPONSES, TEXT, TOOLS, ask

BEGIN, END = "<!-- parameters -->", "<!-- /parameters -->"
WORKS, TAKEN, NEUTRAL, REFUSED = "works", "taken without an effect", "only a value that asks for nothing", "refused"
Field = tuple[str, Any, Any]  # which of these; a value that is taken (refused: None); one that is refused (None: none)
FORMAT = {"type": "json_object"}

COMMON: dict[str, Field] = {
    "model": (WORKS, "tiny", "gpt-4"),
    "stream": (WORKS, False, 1),
    "temperature": (WORKS, 0.5, "hot"),
    "top_p": (WORKS, 0.9, 2),
    "user": (TAKEN, "me", None),
    "metadata": (TAKEN, {"a": "b"}, None),
    "safety_identifier": (TAKEN, "me", None),
    "prompt_cache_key": (TAKEN, "k", None),
    "prompt_cache_retention": (NEUTRAL, "in_memory", "24h"),
    "prompt_cache_options": (NEUTRAL, {}, {"mode": "explicit"}),
    "service_tier": (NEUTRAL, "auto", "flex"),
    "moderation": (REFUSED, None, {"model": "m"}),
}
OPENAI: dict[str, Field] = {
    "frequency_penalty": (WORKS, 1, 3),
    "presence_penalty": (WORKS, 1, 3),
    "logit_bias": (WORKS, {"5": 1}, {"x": 1}),
    "max_tokens": (WORKS, 3, 0),
    "n": (WORKS, 2, 0),
    "seed": (WORKS, 3, -1),
    "stop": (WORKS, ["I l"], [1]),
    "stream_options": (WORKS, None, {"include_usage": True}),
}


def of(fields: dict[str, Field], *names: str) -> dict[str, Field]:
    return {name: fields[name] for name in names}


KNOWN: dict[str, dict[str, Field]] = {
    CHAT: COMMON | OPENAI | {
        "messages": (WORKS, [{"role": "user", "content": "hi"}], []),
        "max_completion_tokens": (WORKS, 3, 0),
        "logprobs": (WORKS, True, 1),
        "top_logprobs": (WORKS, 0, 2),
        "response_format": (WORKS, FORMAT, {"type": "xml"}),
        "tools": (WORKS, TOOLS[CHAT], [{}]),
        "tool_choice": (WORKS, "auto", "some"),
        "parallel_tool_calls": (WORKS, False, 1),
        "store": (NEUTRAL, False, True),
        "modalities": (NEUTRAL, ["text"], ["audio"]),
        "reasoning_effort": (NEUTRAL, "medium", "high"),
        "verbosity": (NEUTRAL, "medium", "low"),
        "functions": (NEUTRAL, [], [FUNCTION]),
        "function_call": (NEUTRAL, "auto", {"name": "look"}),
        "audio": (REFUSED, None, {"voice": "v", "format": "wav"}),
        "prediction": (REFUSED, None, {"type": "content", "content": "x"}),
        "web_search_options": (REFUSED, None, {}),
    },
    COMPLETE: of(COMMON, "model", "stream", "temperature", "top_p", "user") | OPENAI | {
        "prompt": (WORKS, ["u:hi|a:", "u:ho|a:"], 5),
        "best_of": (WORKS, 2, 0),
        "echo": (WORKS, True, 1),
        "logprobs": (WORKS, 2, 99),
        "suffix": (NEUTRAL, "", "x"),
    },
    RESPONSES: COMMON | {
        "input": (WORKS, "hi", []),
        "instructions": (WORKS, "be kind", 5),
        "max_output_tokens": (WORKS, 3, 0),
        "include": (WORKS, ["message.output_text.logprobs"], ["file_search_call.results"]),
        "top_logprobs": (WORKS, 2, 99),
        "text": (WORKS, {"format": FORMAT}, {"verbosity": "low"}),
        "tools": (WORKS, TOOLS[RESPONSES], [{"type": "web_search"}]),
        "tool_choice": (WORKS, "auto", "some"),
        "parallel_tool_calls": (WORKS, False, 1),
        "store": (TAKEN, True, None),
        "stream_options": (NEUTRAL, {"include_obfuscation": False}, {"include_obfuscation": True}),
        "truncation": (NEUTRAL, "disabled", "auto"),
        "background": (NEUTRAL, False, True),
        "background_options": (NEUTRAL, {}, {"completion_window": "2h"}),
        "reasoning": (NEUTRAL, {}, {"effort": "high"}),
        "context_management": (NEUTRAL, [], [{"type": "compaction"}]),
        "access_programs": (NEUTRAL, [], ["x"]),
        "image": (REFUSED, None, {"a": 1}),
        "previous_response_id": (REFUSED, None, "resp_1"),
        "conversation": (REFUSED, None, "conv_1"),
        "prompt": (REFUSED, None, {"id": "p"}),
        "max_tool_calls": (REFUSED, None, 3),
    },
    MESSAGES: of(COMMON, "model", "stream", "metadata", "temperature", "top_p") | {
        "messages": (WORKS, [{"role": "user", "content": "hi"}], []),
        "max_tokens": (WORKS, 3, 0),
        "system": (WORKS, "be kind", 5),
        "stop_sequences": (WORKS, ["I l"], [1]),
        "top_k": (WORKS, 5, -1),
        "tools": (WORKS, TOOLS[MESSAGES], [{"type": "bash_20250124"}]),
        "tool_choice": (WORKS, {"type": "auto"}, {"type": "some"}),
        "output_config": (WORKS, {"format": {"type": "json_schema", "schema": {"type": "object"}}}, {"effort": "low"}),
        "cache_control": (TAKEN, {"type": "ephemeral"}, None),
        "user_profile_id": (TAKEN, "u", None),
        "workspace_id": (TAKEN, "w", None),
        "thinking": (NEUTRAL, {"type": "disabled"}, {"type": "enabled", "budget_tokens": 1024}),
        "service_tier": (NEUTRAL, "auto", "flex"),
        "speed": (NEUTRAL, "standard", "fast"),
        "container": (REFUSED, None, "c"),
        "diagnostics": (REFUSED, None, {"previous_message_id": "m"}),
        "inference_geo": (REFUSED, None, "eu"),
    },
}  # fmt: skip


def of_the_clients() -> dict[str, set[str]]:
    """The fields of their type definitions."""
    pytest.importorskip("openai")
    pytest.importorskip("anthropic")
    from anthropic.types import message_create_params
    from openai.types import completion_create_params
    from openai.types.chat import completion_create_params as chat
    from openai.types.responses import response_create_params

    return {
        CHAT: set(chat.CompletionCreateParamsBase.__annotations__),
        COMPLETE: set(completion_create_params.CompletionCreateParamsBase.__annotations__),
        RESPONSES: set(response_create_params.ResponseCreateParamsBase.__annotations__),
        MESSAGES: set(message_create_params.MessageCreateParamsBase.__annotations__),
    }


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with parrot(tmp_path_factory.mktemp("parrot"), TEXT) as (found, _):
        yield found


@pytest.mark.parametrize("form", FORMS)
def test_no_field_of_the_clients_is_missing(form: str) -> None:
    assert of_the_clients()[form] - KNOWN[form].keys() == set()


@pytest.mark.parametrize("form", FORMS)
def test_each_is_as_the_list_says(url: str, form: str) -> None:
    for name, (kind, taken, refused) in KNOWN[form].items():
        assert (taken is None) == (kind == REFUSED or (name == "stream_options" and form in (CHAT, COMPLETE))), name
        if taken is not None:
            answer = ask(url, form, {name: taken})
            assert answer.status_code == 200, (name, answer.text)
        if refused is not None:
            answer = ask(url, form, {name: refused})
            assert answer.status_code in (400, 404), (name, answer.text)
            assert name in answer.json()["error"]["message"], (name, answer.text)
        assert (refused is None) == (kind == TAKEN), name


def said() -> str:
    lines = [f"| | {' | '.join(f'`{form}`' for form in FORMS)} |", "| --- | --- | --- | --- | --- |"]
    for kind in (TAKEN, NEUTRAL, REFUSED):
        cells = [", ".join(f"`{name}`" for name, field in KNOWN[form].items() if field[0] == kind) for form in FORMS]
        lines.append(f"| {kind} | {' | '.join(cells)} |".replace("|  |", "| |"))
    return "\n".join(lines)


def test_the_list_of_the_docs() -> None:
    docs = DOCS.read_text(encoding="utf-8")
    before, rest = docs.split(BEGIN)
    held, after = rest.split(END)
    if os.environ.get("UPDATE_GOLDEN"):
        DOCS.write_text(f"{before}{BEGIN}\n\n{said()}\n\n{END}{after}", encoding="utf-8")
        return
    assert held.strip() == said(), "docs/serving.md: UPDATE_GOLDEN=1 pytest tests/serving/test_parameters.py"
