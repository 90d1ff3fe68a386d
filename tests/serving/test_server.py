"""The server as its clients see it: the same texts as generate, OpenAI's forms, refusals that name the parameter."""

import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.serving import events, serving, with_template
from tiny import write_base, write_checkpoint

from mtpd_mlx.commands.serve import MLXRuntime
from mtpd_mlx.options.base import RunnableOptions
from mtpd_mlx.options.decode import DecodingConfig
from mtpd_mlx.speculative.loop import generate
from mtpd_mlx.speculative.sampling import Sampling

CHAT, COMPLETE = "/v1/chat/completions", "/v1/completions"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    return write_checkpoint(folder / "heads", with_template(write_base(folder / "base")), 3)


def opened(checkpoint: Path) -> MLXRuntime:
    return MLXRuntime(RunnableOptions(checkpoint=str(checkpoint)), DecodingConfig(), None)


@pytest.fixture(scope="module")
def asked(checkpoint: Path) -> Iterator[Any]:
    with serving(lambda: opened(checkpoint)) as (client, _):
        yield client


def reference(checkpoint: Path, text: str, max_tokens: int, sampling: Sampling = Sampling()) -> list[int]:  # noqa: B008
    runtime = opened(checkpoint)
    prompt = runtime.tokenizer.encode(text)
    chunks = generate(runtime.decoder(sampling), prompt, max_tokens=max_tokens, eos_token_ids=runtime.tokenizer.eos_token_ids)
    return [t for c in chunks for t in c.tokens]


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def test_texts_are_those_of_generate(asked: Any, checkpoint: Path) -> None:
    decode = opened(checkpoint).tokenizer.decode
    for text in ("hello there", "hello there, you", "What is 2+2?"):
        expected = reference(checkpoint, text, 20)
        answer = asked.post(COMPLETE, json={"prompt": text, "max_tokens": 20}).json()
        assert answer["choices"][0]["text"] == decode(expected) and answer["object"] == "text_completion"
        assert answer["usage"]["completion_tokens"] == len(expected)
        expected = reference(checkpoint, f"u:{text}\na:", 20)
        body = {"model": "tiny", "messages": user(text), "max_completion_tokens": 20}
        answer = asked.post(CHAT, json=body).json()
        assert answer["choices"][0]["message"] == {"role": "assistant", "content": decode(expected)}
        assert answer["object"] == "chat.completion" and answer["choices"][0]["finish_reason"] in ("length", "stop")
        with asked.stream("POST", CHAT, json=body | {"stream": True, "stream_options": {"include_usage": True}}) as stream:
            assert stream.headers["content-type"].startswith("text/event-stream")
            said = events(stream.iter_lines())
        assert "".join(c["choices"][0]["delta"].get("content", "") for c in said[:-1]) == decode(expected)
        assert said[0]["choices"][0]["delta"]["role"] == "assistant" and len({c["id"] for c in said}) == 1
        assert [c["choices"][0]["finish_reason"] for c in said[:-1]].count(answer["choices"][0]["finish_reason"]) == 1
        assert said[-1]["choices"] == [] and said[-1]["usage"]["completion_tokens"] == len(expected)


def test_a_conversation_prefills_only_what_is_new(asked: Any, checkpoint: Path) -> None:
    messages = user("abc abc")
    first = asked.post(CHAT, json={"messages": messages, "max_tokens": 12}).json()
    text = first["choices"][0]["message"]["content"]
    messages += [{"role": "assistant", "content": text}, *user("go on")]
    second = asked.post(CHAT, json={"messages": messages, "max_tokens": 12}).json()
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] >= first["usage"]["prompt_tokens"]
    expected = reference(checkpoint, f"u:abc abc\na:{text}\nu:go on\na:", 12)
    assert second["choices"][0]["message"]["content"] == opened(checkpoint).tokenizer.decode(expected)


def test_sampling_and_seeds(asked: Any) -> None:
    body = {"prompt": "once", "max_tokens": 30, "temperature": 1.0, "top_p": 0.9}
    same = [asked.post(COMPLETE, json=body | {"seed": 7}).json()["choices"][0]["text"] for _ in range(2)]
    other = asked.post(COMPLETE, json=body | {"seed": 8}).json()["choices"][0]["text"]
    assert same[0] == same[1] != other


def test_stop_strings(asked: Any, checkpoint: Path) -> None:
    text = opened(checkpoint).tokenizer.decode(reference(checkpoint, "hello there", 30))
    stop = text[6:9]
    answer = asked.post(COMPLETE, json={"prompt": "hello there", "max_tokens": 30, "stop": ["never said", stop]}).json()
    assert answer["choices"][0] == {
        "index": 0, "logprobs": None, "finish_reason": "stop", "text": text[: text.index(stop)],
    }  # fmt: skip


def test_drafts_are_shown_where_asked_for(asked: Any) -> None:
    body = {"messages": user("hello"), "max_tokens": 20, "stream": True}
    with asked.stream("POST", CHAT, json=body | {"mtpd_drafts": True}) as stream:
        pieces = [p for c in events(stream.iter_lines()) for p in c.get("mtpd_drafts", [])]
    with asked.stream("POST", CHAT, json=body) as stream:
        plain = events(stream.iter_lines())
    assert "".join(text for text, _ in pieces) == "".join(c["choices"][0]["delta"].get("content", "") for c in plain)
    assert not any("mtpd_drafts" in c for c in plain)


TOOL = {"type": "function", "function": {"name": "f"}}
IMAGE = {"role": "user", "content": [{"type": "image_url"}]}
REFUSED: list[tuple[dict[str, Any], int, str | None, str]] = [
    ({"messages": []}, 400, "messages", "invalid_value"),
    ({"messages": user("x"), "temprature": 1}, 400, "temprature", "unknown_parameter"),
    ({"messages": user("x"), "temperature": "hot"}, 400, "temperature", "invalid_value"),
    ({"messages": user("x"), "temperature": True}, 400, "temperature", "invalid_value"),
    ({"messages": user("x"), "top_p": 1.5}, 400, "top_p", "invalid_value"),
    ({"messages": user("x"), "n": 0}, 400, "n", "invalid_value"),
    ({"messages": user("x"), "n": 65}, 400, "n", "invalid_value"),
    ({"messages": user("x"), "logprobs": 1}, 400, "logprobs", "invalid_value"),
    ({"messages": user("x"), "logprobs": True, "top_logprobs": 21}, 400, "top_logprobs", "invalid_value"),
    ({"messages": user("x"), "top_logprobs": 2}, 400, "top_logprobs", "invalid_value"),
    ({"messages": user("x"), "logit_bias": {"-5": 1}}, 400, "logit_bias", "invalid_value"),
    ({"messages": user("x"), "logit_bias": {"5000": 1}}, 400, "logit_bias", "invalid_value"),
    ({"messages": user("x"), "logit_bias": {"5": 101}}, 400, "logit_bias.5", "invalid_value"),
    ({"messages": user("x"), "logit_bias": [1]}, 400, "logit_bias", "invalid_value"),
    ({"messages": user("x"), "frequency_penalty": 2.5}, 400, "frequency_penalty", "invalid_value"),
    ({"messages": user("x"), "response_format": {"type": "xml"}}, 400, "response_format", "unsupported_parameter"),
    ({"messages": user("x"), "tools": [TOOL]}, 400, "tools", "unsupported_parameter"),
    ({"messages": user("x"), "tools": [{"type": "function"}]}, 400, "tools[0]", "invalid_value"),
    ({"messages": user("x"), "tools": [TOOL], "tool_choice": "required"}, 400, "tools", "unsupported_parameter"),
    ({"messages": user("x"), "tool_choice": "required"}, 400, "tool_choice", "invalid_value"),
    ({"messages": user("x"), "tools": [TOOL], "tool_choice": {"type": "x"}}, 400, "tool_choice", "invalid_value"),
    ({"messages": [{"role": "user", "tool_calls": [1]}]}, 400, "messages[0].tool_calls", "invalid_value"),
    ({"messages": user("x"), "stop": [""]}, 400, "stop", "invalid_value"),
    ({"messages": user("x"), "max_tokens": 0}, 400, "max_tokens", "invalid_value"),
    ({"messages": user("x"), "max_tokens": 1, "max_completion_tokens": 2}, 400, "max_tokens", "invalid_value"),
    ({"messages": user("x"), "stream_options": {"include_usage": True}}, 400, "stream_options", "invalid_value"),
    ({"messages": user("x"), "model": "gpt-4"}, 404, "model", "model_not_found"),
    ({"messages": [{"role": "clown", "content": "x"}]}, 400, "messages[0].role", "invalid_value"),
    ({"messages": [IMAGE]}, 400, "messages[0].content[0].type", "unsupported_parameter"),
    ({"messages": [{"role": "user"}]}, 400, "messages[0].content", "invalid_value"),
    ({"messages": user("x" * 300)}, 400, "messages", "context_length_exceeded"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "status", "param", "code"), REFUSED)
def test_refusals_name_the_parameter(asked: Any, body: dict[str, Any], status: int, param: str, code: str) -> None:
    answer = asked.post(CHAT, json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (status, param, code)
    assert error["message"] and "\n" not in error["message"] and error["type"]


@pytest.mark.parametrize("body", [{"messages": user("x" * 300_000)}, {"prompt": "x" * 300_000}], ids=["chat", "completions"])
def test_a_prompt_that_cannot_fit_is_refused_before_it_is_encoded(asked: Any, body: dict[str, Any]) -> None:
    error = asked.post(CHAT if "messages" in body else "/v1/completions", json=body).json()["error"]
    assert error["code"] == "context_length_exceeded" and re.search(r"has \d{6} characters", error["message"])


def test_refusals_in_the_forms_of_other_apis(asked: Any) -> None:
    for body, word in (
        ({"messages": user("x")}, "max_tokens"),
        ({"messages": [*user("x"), {"role": "assistant", "content": "y"}], "max_tokens": 3}, "messages"),
        ({"messages": [{"role": "system", "content": "x"}], "max_tokens": 3}, "messages"),
        ({"messages": user("x"), "max_tokens": 3, "thinking": {"type": "enabled"}}, "thinking"),
        ({"messages": user("x"), "max_tokens": 3, "stop": "y"}, "stop"),
    ):
        answer = asked.post("/v1/messages", json=body)
        error = answer.json()
        assert answer.status_code == 400 and error["type"] == "error" and word in error["error"]["message"]
        assert error["error"]["type"] == "invalid_request_error"
    for body, param in (
        ({}, "input"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
        ({"input": "x", "text": {"format": {"type": "json_schema"}}}, "text.format.schema"),
        ({"input": "x", "stop": "y"}, "stop"),
    ):
        assert asked.post("/v1/responses", json=body).json()["error"]["param"] == param


def test_templates_see_tools_and_calls(tmp_path: Path) -> None:
    from mtpd_mlx.serving.forms.common import Served
    from mtpd_mlx.serving.forms.openai import chat
    from mtpd_mlx.text.tokenizer import Tokenizer

    base = with_template(
        write_base(tmp_path / "base"),
        "{% for t in tools or [] %}{{ t.function.name }};{% endfor %}{% for m in messages %}{{ m.role[0] }}:{{ m.content }}"
        "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function.arguments.x }}</tool_call>{% endfor %}|{% endfor %}",
    )
    tokenizer = Tokenizer.from_folder(base)
    served = Served(("tiny",), tokenizer, 256, Sampling(), 5)
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": 7}'}}
    said: list[dict[str, Any]] = [*user("hi"), {"role": "assistant", "content": None, "tool_calls": [call]}]
    said += [{"role": "tool", "tool_call_id": "1", "content": "8"}]
    (request,), _ = chat({"messages": said, "tools": [TOOL]}, served)
    assert tokenizer.decode(request.prompt) == "f;u:hi|a:<tool_call>7</tool_call>|t:8|"
    (request,), _ = chat({"messages": said, "tools": [TOOL], "tool_choice": "none"}, served)
    assert not tokenizer.decode(request.prompt).startswith("f;")


def test_prompts_of_completions(asked: Any) -> None:
    answers = [asked.post(COMPLETE, json={"prompt": p, "max_tokens": 5}).json() for p in ("ab", ["ab"], [69, 70], [[69, 70]])]
    first, *others = [a["choices"][0]["text"] for a in answers[:2]]
    assert others == [first] and answers[2]["choices"] == answers[3]["choices"]
    for wrong in ([], 5, [1, 500], [[True]], ""):
        assert asked.post(COMPLETE, json={"prompt": wrong}).json()["error"]["param"] == "prompt"


def test_other_paths_and_bodies(asked: Any) -> None:
    health = asked.get("/health").json()
    assert health.pop("resting") >= 0
    assert health == {"status": "ok", "model": "tiny", "waiting": 0, "running": 0, "integrity": "ok"}
    card = asked.get("/v1/models").json()["data"][0]
    assert card["id"] == "tiny" and card["mtpd"]["heads"] == 3 and asked.get("/v1/models/default").json() == card
    for answer, status in (
        (asked.get("/v1/models/other"), 404),
        (asked.get("/nowhere"), 404),
        (asked.get(CHAT), 405),
        (asked.post(CHAT, content=b"{"), 400),
        (asked.post(CHAT, content=b"[]"), 400),
        (asked.post(CHAT, content=b"\xff\xfe"), 400),
        (asked.post(CHAT, content=b"[" * 100_000), 400),
    ):
        assert answer.status_code == status and answer.json()["error"]["message"]
    assert "<title>mtpd chat</title>" in asked.get("/").text
    metrics = asked.get("/metrics").text
    assert 'mtpd_requests_total{path="/v1/chat/completions",status="400"}' in metrics and "mtpd_tokens_total" in metrics
    assert 'mtpd_drafts_total{depth="1"}' in metrics


def test_keys_limits_and_origins(checkpoint: Path) -> None:
    options = {"api_key": "secret", "max_body": 1000, "origins": ("https://page.example",)}
    with serving(lambda: opened(checkpoint), **options) as (client, _):
        body = {"prompt": "x", "max_tokens": 2}
        assert client.post(COMPLETE, json=body).status_code == 401
        assert client.post(COMPLETE, json=body, headers={"authorization": "Bearer wrong"}).status_code == 401
        good = {"authorization": "Bearer secret", "origin": "https://page.example"}
        answer = client.post(COMPLETE, json=body, headers=good)
        assert answer.status_code == 200 and answer.headers["access-control-allow-origin"] == "https://page.example"
        assert client.get("/v1/models", headers={"x-api-key": "secret"}).status_code == 200
        assert client.get("/metrics").status_code == 401 and client.get("/health").status_code == 200
        too_long = client.post(COMPLETE, json=body | {"user": "x" * 1000}, headers=good)
        assert too_long.status_code == 413 and too_long.json()["error"]["code"] == "body_too_large"


def test_sixteen_at_once_get_the_texts_of_generate(asked: Any, checkpoint: Path) -> None:
    """Greedy ones token for token, and seeded ones as they are alone."""
    bodies: list[dict[str, Any]] = [{"prompt": f"text number {i}" * (1 + i % 3), "max_tokens": 30 + i} for i in range(16)]
    for body in bodies[::4]:
        body |= {"temperature": 0.8, "seed": 3}
    alone = [asked.post(COMPLETE, json=b).json()["choices"] for b in bodies]
    tokenizer = opened(checkpoint).tokenizer
    for body, choices in zip(bodies, alone, strict=True):
        if "seed" not in body:
            expected = reference(checkpoint, body["prompt"], body["max_tokens"])
            assert choices[0]["text"] == tokenizer.decode([t for t in expected if t not in tokenizer.eos_token_ids])
    together: list[Any] = [None] * len(bodies)

    def ask(i: int) -> None:
        together[i] = asked.post(COMPLETE, json=bodies[i]).json()["choices"]

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(bodies))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == alone
    health, metrics = asked.get("/health").json(), asked.get("/metrics").text
    assert (health["running"], health["waiting"], health["integrity"]) == (0, 0, "ok")
    counted = {float(v) for v in re.findall(r'mtpd_batch_rounds_total\{drafts="\d+"\} (\S+)', metrics)}
    assert sum(counted) > 0 and "mtpd_cache_faults 0.0" in metrics
