"""The openai client against a server on a socket; clients that go away; a served folder of mtpd-onnx."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.serving import serving, with_template
from mtpd_onnx.commands.serve import OnnxRuntime
from mtpd_onnx.export.export import export_checkpoint
from tiny import write_base, write_checkpoint

from mtpd_mlx.commands.serve import MLXRuntime
from mtpd_mlx.options.base import RunnableOptions
from mtpd_mlx.options.decode import DecodingConfig
from mtpd_mlx.options.export import ExportOptions
from mtpd_mlx.options.runtime import RuntimeOptions
from mtpd_mlx.serving.app import Server, make_app
from mtpd_mlx.serving.engine import Engine, EngineOptions
from mtpd_mlx.serving.forms.common import Served
from mtpd_mlx.speculative.sampling import Sampling


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(checkpoint, its export)."""
    folder = tmp_path_factory.mktemp("served")
    checkpoint = write_checkpoint(folder / "heads", with_template(write_base(folder / "base")), 3)
    export_checkpoint(checkpoint, folder / "onnx", ExportOptions())
    return checkpoint, folder / "onnx"


@pytest.fixture(scope="module")
def address(folders: tuple[Path, Path]) -> Iterator[tuple[str, Engine]]:
    """Of a real server, and its engine."""
    import uvicorn

    engine = Engine(lambda: MLXRuntime(RunnableOptions(checkpoint=str(folders[0])), DecodingConfig(), None), EngineOptions(8))
    runtime = engine.start()
    served = Served(("tiny", "default"), runtime.tokenizer, runtime.capacity, Sampling(), 64)
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    config = uvicorn.Config(make_app(Server(engine, served, runtime.info, None, 1 << 20)), port=port, log_level="warning")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()), daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"127.0.0.1:{port}", engine
    server.should_exit = True
    thread.join(10)


def test_the_openai_client(address: tuple[str, Engine]) -> None:
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=f"http://{address[0]}/v1", api_key="none", max_retries=0)
    assert [m.id for m in client.models.list()] == ["tiny"] and client.models.retrieve("tiny").owned_by == "mtpd"
    asked: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 12}
    whole = client.chat.completions.create(**asked)
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content and chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    parts = asked | {"messages": [{"role": "user", "content": [{"type": "text", "text": "hello"}]}], "user": "me", "n": 1}
    assert client.chat.completions.create(**parts).choices[0].message.content == text
    assert client.completions.create(model="default", prompt="hello there", max_tokens=3).usage.completion_tokens == 3
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(**asked, modalities=["text", "audio"])
    assert refused.value.param == "modalities" and refused.value.code == "unsupported_parameter"
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(**asked | {"model": "other"})


def test_the_openai_client_by_responses(address: tuple[str, Engine]) -> None:
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=f"http://{address[0]}/v1", api_key="none", max_retries=0)
    asked: dict[str, Any] = {"model": "tiny", "input": "hello you", "max_output_tokens": 12}
    whole = client.responses.create(**asked)
    events = list(client.responses.create(**asked, stream=True))
    assert [e.sequence_number for e in events] == list(range(len(events)))
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == whole.output_text
    assert events[0].type == "response.created" and events[-1].response.output_text == whole.output_text
    assert whole.status in ("completed", "incomplete") and whole.usage.output_tokens == events[-1].response.usage.output_tokens
    chat = client.chat.completions.create(
        model="tiny", max_tokens=12, messages=[{"role": "system", "content": "Be"}, {"role": "user", "content": "hello you"}]
    )
    item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hello you"}]}
    again = client.responses.create(**asked | {"input": [item], "instructions": "Be"})
    assert again.output_text == chat.choices[0].message.content
    with pytest.raises(openai.BadRequestError) as refused:
        client.responses.create(**asked, previous_response_id="resp_1")
    assert refused.value.param == "previous_response_id"


def test_the_anthropic_client(address: tuple[str, Engine]) -> None:
    anthropic = pytest.importorskip("anthropic")
    client = anthropic.Anthropic(base_url=f"http://{address[0]}", api_key="none", max_retries=0)
    messages = [{"role": "user", "content": [{"type": "text", "text": "hello you"}]}]
    asked: dict[str, Any] = {"model": "tiny", "messages": messages, "max_tokens": 12, "system": "Be"}
    whole = client.messages.create(**asked)
    with client.messages.stream(**asked) as stream:
        assert "".join(stream.text_stream) == whole.content[0].text
        final = stream.get_final_message()
    assert final.stop_reason == whole.stop_reason and final.usage.output_tokens == whole.usage.output_tokens
    counted = client.messages.count_tokens(**{k: v for k, v in asked.items() if k != "max_tokens"}).input_tokens
    assert counted == whole.usage.input_tokens + whole.usage.cache_read_input_tokens
    stop = whole.content[0].text[3:5]
    stopped = client.messages.create(**asked, stop_sequences=["never", stop])
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", stop)
    changing = [{"type": "text", "text": f"x-anthropic-billing-header: {i}"} for i in range(2)]
    for block in changing:
        kept = client.messages.create(**asked | {"system": [block, {"type": "text", "text": "Be"}]})
        assert kept.content[0].text == whole.content[0].text
    assert kept.usage.cache_read_input_tokens == counted - 1
    with pytest.raises(anthropic.BadRequestError, match="tools"):
        client.messages.create(**asked, tools=[{"name": "x", "input_schema": {"type": "object"}}])
    with pytest.raises(anthropic.NotFoundError):
        client.messages.create(**asked | {"model": "other"})


def test_clients_that_go_away_leave_nothing_behind(address: tuple[str, Engine]) -> None:
    host, port = address[0].split(":")
    body = json.dumps({"prompt": "abc", "max_tokens": 200, "stream": True}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    whole = head + body
    for sent in (head[:20], head, whole[:-5], whole, whole.replace(b"true", b"null")):
        with socket.create_connection((host, int(port))) as client:
            client.sendall(sent)
            if sent == whole:
                assert b"200 OK" in client.recv(100)
    until = time.monotonic() + 20
    while address[1].running or address[1].waiting:
        assert time.monotonic() < until, "a request of a client that has gone still runs"
        time.sleep(0.02)


def test_an_exported_folder_says_what_the_checkpoint_says(folders: tuple[Path, Path]) -> None:
    checkpoint, exported = folders
    body = {"messages": [{"role": "user", "content": "hello you"}], "max_tokens": 24}
    answers = []
    for opened in (
        lambda: MLXRuntime(RunnableOptions(checkpoint=str(checkpoint)), DecodingConfig(), None),
        lambda: OnnxRuntime(RuntimeOptions(folder=exported, provider="cpu", num_threads=1), None),
        lambda: MLXRuntime(RunnableOptions(checkpoint=str(checkpoint)), DecodingConfig(), 0),
    ):
        with serving(opened) as (client, _):
            answers.append(client.post("/v1/chat/completions", json=body).json()["choices"])
            sampled = client.post("/v1/chat/completions", json=body | {"temperature": 0.8, "seed": 3})
            assert sampled.status_code == 200 and sampled.json()["usage"]["completion_tokens"] > 0
    assert answers[0] == answers[1] == answers[2]
