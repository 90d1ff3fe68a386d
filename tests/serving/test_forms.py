"""Thoughts, text and calls in every form, whole and streamed, as the clients of OpenAI and Anthropic read them."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from helpers.parrot import Parrot, parrot

anthropic, openai = pytest.importorskip("anthropic"), pytest.importorskip("openai")
CALL = '<tool_call>\n{"name": "look", "arguments": {"city": "Oslo"}}\n</tool_call>'
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
HARD = {"city": "Oslo"}
User = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Parrot]]:
    with parrot(tmp_path_factory.mktemp("parrot"), f"<think>so it is</think>\n\nI look. {CALL}\n{CALL}") as found:
        yield found


@pytest.fixture
def oa(served: tuple[str, Parrot]) -> Any:
    return openai.OpenAI(base_url=f"{served[0]}/v1", api_key="none", max_retries=0)


@pytest.fixture
def an(served: tuple[str, Parrot]) -> Any:
    return anthropic.Anthropic(base_url=served[0], api_key="none", max_retries=0)


def test_chat_completions(oa: Any) -> None:
    tools = [{"type": "function", "function": {"name": "look", "parameters": SCHEMA}}]
    whole = oa.chat.completions.create(model="tiny", messages=User, tools=tools).choices[0]
    assert whole.message.reasoning == "so it is" and whole.message.content == "I look. "
    assert [json.loads(c.function.arguments) for c in whole.message.tool_calls] == [HARD, HARD]
    assert whole.finish_reason == "tool_calls" and len({c.id for c in whole.message.tool_calls}) == 2
    with oa.chat.completions.stream(model="tiny", messages=User, tools=tools) as stream:
        final = stream.get_final_completion().choices[0]
    assert final.message.content == "I look. " and [c.function.name for c in final.message.tool_calls] == ["look"] * 2


def test_responses(oa: Any) -> None:
    tools = [{"type": "function", "name": "look", "parameters": SCHEMA, "strict": False}]
    asked: dict[str, Any] = {"model": "tiny", "input": "hi", "tools": tools}
    whole = oa.responses.create(**asked)
    assert [o.type for o in whole.output] == ["reasoning", "message", "function_call", "function_call"]
    assert whole.output[0].content[0].text == "so it is" and whole.output_text == "I look. " and whole.status == "completed"
    assert json.loads(whole.output[2].arguments) == HARD and whole.output[2].call_id != whole.output[3].call_id
    with oa.responses.stream(**asked) as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert [o.type for o in final.output] == [o.type for o in whole.output] and final.output_text == whole.output_text
    kinds = [e.type for e in events]
    assert kinds.count("response.output_item.added") == kinds.count("response.output_item.done") == 4
    assert "".join(e.delta for e in events if e.type == "response.reasoning_text.delta") == "so it is"
    assert [json.loads(e.arguments) for e in events if e.type == "response.function_call_arguments.done"] == [HARD, HARD]


def test_messages(an: Any) -> None:
    tools = [{"name": "look", "input_schema": SCHEMA}]
    asked: dict[str, Any] = {"model": "tiny", "messages": User, "tools": tools, "max_tokens": 400}
    whole = an.messages.create(**asked)
    assert [b.type for b in whole.content] == ["thinking", "text", "tool_use", "tool_use"]
    assert whole.content[0].thinking == "so it is" and whole.content[1].text == "I look. " and whole.stop_reason == "tool_use"
    assert whole.content[2].input == HARD and whole.content[2].name == "look"
    with an.messages.stream(**asked) as stream:
        final = stream.get_final_message()
    assert [b.type for b in final.content] == [b.type for b in whole.content] and final.stop_reason == "tool_use"
    assert final.content[3].input == HARD and final.content[0].thinking == "so it is"


def test_without_tools_calls_stay_text(oa: Any, an: Any) -> None:
    assert CALL in oa.responses.create(model="tiny", input="hi").output_text
    assert CALL in an.messages.create(model="tiny", messages=User, max_tokens=400).content[1].text


def test_a_text_cut_inside_of_thoughts(oa: Any, an: Any) -> None:
    cut = oa.responses.create(model="tiny", input="hi", max_output_tokens=12)
    assert [(o.type, o.content[0].text) for o in cut.output] == [("reasoning", "so it")] and cut.status == "incomplete"
    cut = an.messages.create(model="tiny", messages=User, max_tokens=12)
    assert [(b.type, b.thinking) for b in cut.content] == [("thinking", "so it")] and cut.stop_reason == "max_tokens"


def test_conversations_with_calls_read_alike(oa: Any, an: Any, served: tuple[str, Parrot]) -> None:
    prompts = served[1].prompts
    function = {"name": "look", "arguments": json.dumps(HARD)}
    chat = [
        *User,
        {"role": "assistant", "content": "I", "tool_calls": [{"id": "1", "type": "function", "function": function}]},
        {"role": "tool", "tool_call_id": "1", "content": "rain"},
        {"role": "user", "content": "so?"},
    ]
    expected = "[look]u:hi|a:I<tool_call>look Oslo</tool_call>|t:rain|u:so?|a:"
    tools = [{"type": "function", "function": {"name": "look", "parameters": SCHEMA}}]
    oa.chat.completions.create(model="tiny", messages=chat, tools=tools)
    assert prompts[-1] == expected
    items = [
        {"role": "user", "content": "hi"},
        {"type": "reasoning", "id": "rs_1", "summary": []},
        {"role": "assistant", "content": "I"},
        {"type": "function_call", "call_id": "1", **function},
        {"type": "function_call_output", "call_id": "1", "output": "rain"},
        {"role": "user", "content": [{"type": "input_text", "text": "so?"}]},
    ]
    prompts.clear()
    oa.responses.create(model="tiny", input=items, tools=[{"type": "function", "name": "look", "parameters": SCHEMA}])
    blocks = [{"type": "thinking", "thinking": "x", "signature": ""}, {"type": "text", "text": "I"}]
    use = {"type": "tool_use", "id": "1", "name": "look", "input": HARD}
    result = {"type": "tool_result", "tool_use_id": "1", "content": [{"type": "text", "text": "rain"}]}
    said = [
        *User,
        {"role": "assistant", "content": [*blocks, use]},
        {"role": "user", "content": [result, {"type": "text", "text": "so?"}]},
    ]
    an.messages.create(model="tiny", max_tokens=5, messages=said, tools=[{"name": "look", "input_schema": SCHEMA}])
    assert prompts[-1] == expected


USE = {"type": "tool_use", "name": "f", "input": {}}
REFUSED = [
    ("responses", {"input": "x", "tools": [{"type": "web_search"}]}, "tools[0].type"),
    ("responses", {"input": "x", "tools": [{"type": "function"}]}, "tools[0]"),
    ("responses", {"input": "x", "tool_choice": "required"}, "tool_choice"),
    ("responses", {"input": [{"type": "function_call", "name": "f", "arguments": "["}]}, "input[0].arguments"),
    ("responses", {"input": "x", "text": {"format": {"type": "json_schema"}}}, "text.format.schema"),
    ("responses", {"input": "x", "text": {"verbosity": "low"}}, "text.verbosity"),
    ("messages", {"messages": User, "max_tokens": 5, "tools": [{"type": "bash_20250124", "name": "bash"}]}, "tools[0].type"),
    ("messages", {"messages": User, "max_tokens": 5, "tool_choice": {"type": "any"}}, "tool_choice"),
    ("messages", {"messages": User, "max_tokens": 5, "tool_choice": {"type": "most"}}, "tool_choice"),
    ("messages", {"messages": User, "max_tokens": 5, "output_config": {"effort": "low"}}, "output_config"),
    ("messages", {"messages": [{"role": "user", "content": [USE]}], "max_tokens": 5}, "tool_use"),
    ("messages", {"messages": [{"role": "user", "content": [{"type": "image"}]}], "max_tokens": 5}, "content[0].type"),
]  # fmt: skip


@pytest.mark.parametrize(("form", "body", "named"), REFUSED)
def test_refusals(served: tuple[str, Parrot], form: str, body: dict[str, Any], named: str) -> None:
    import httpx

    answer = httpx.post(f"{served[0]}/v1/{form}", json=body)
    assert answer.status_code == 400 and named in answer.json()["error"]["message"]


def test_one_call_at_most(oa: Any, an: Any) -> None:
    """Where the model may choose: its first call ends the answer."""
    tools: list[dict[str, Any]] = [{"type": "function", "function": {"name": "look", "parameters": SCHEMA}}]
    asked: dict[str, Any] = {"model": "tiny", "messages": User, "tools": tools, "parallel_tool_calls": False}
    with oa.chat.completions.stream(**asked) as stream:
        streamed = stream.get_final_completion().choices[0]
    for choice in (oa.chat.completions.create(**asked).choices[0], streamed):
        (call,) = choice.message.tool_calls
        assert json.loads(call.function.arguments) == HARD and choice.finish_reason == "tool_calls"
        assert choice.message.content == "I look. "
    flat = [{"type": "function", "name": "look", "parameters": SCHEMA, "strict": False}]
    answer = oa.responses.create(model="tiny", input="hi", tools=flat, parallel_tool_calls=False)
    assert [item.type for item in answer.output] == ["reasoning", "message", "function_call"] and answer.status == "completed"
    asked = {"model": "tiny", "max_tokens": 300, "messages": User, "tools": [{"name": "look", "input_schema": SCHEMA}]}
    asked["tool_choice"] = {"type": "auto", "disable_parallel_tool_use": True}
    with an.messages.stream(**asked) as stream:
        final = stream.get_final_message()
    for message in (an.messages.create(**asked), final):
        assert [block.type for block in message.content] == ["thinking", "text", "tool_use"]
        assert message.stop_reason == "tool_use" and message.stop_sequence is None
