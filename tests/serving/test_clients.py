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
from mtpd_mlx.serving.engine import Engine
from mtpd_mlx.serving.requests import Served
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

    engine = Engine(lambda: MLXRuntime(RunnableOptions(checkpoint=str(folders[0])), DecodingConfig(), None), 8)
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
        client.chat.completions.create(**asked, logprobs=True)
    assert refused.value.param == "logprobs" and refused.value.code == "unsupported_parameter"
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(**asked | {"model": "other"})


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
    while address[1].running is not None or address[1].waiting:
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
