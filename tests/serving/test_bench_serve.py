"""tools/bench_serve: what it says of a server that is well, and of servers that are not."""

import asyncio
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from helpers.bound import hashed_rows
from helpers.fakes import ScriptedModel, hashed
from helpers.serving import TEMPLATE, with_template
from helpers.tools import tool
from tiny import write_base, write_checkpoint, write_tokenizer

from mtpd_mlx.files.measured import CACHE, NAME
from mtpd_mlx.serving.app import Server, make_app
from mtpd_mlx.serving.engine import Engine, EngineOptions
from mtpd_mlx.serving.forms.common import Served
from mtpd_mlx.speculative.bound_rows import BoundRows
from mtpd_mlx.speculative.one_by_one import OneByOne
from mtpd_mlx.speculative.rounds import StepBackend
from mtpd_mlx.speculative.sampling import Sampling
from mtpd_mlx.text.tokenizer import Tokenizer
from tools.bench_serve.faults import Target, faults
from tools.bench_serve.idle import busy, come_to_rest, grown
from tools.bench_serve.kills import damaged, files_of, survive
from tools.bench_serve.load import Asked, Load, load, streamed
from tools.bench_serve.processes import cpu_seconds
from tools.bench_serve.report import describe, figures, quantile, summary
from tools.bench_serve.servers import Server as Asked_Server
from tools.bench_serve.servers import Wanted, end, free_port, of_mlx_lm, of_words, started, with_environments, with_models
from tools.bench_serve.wire import get

PROMPTS = ["hello", "what is it?", "count to ten", "a, b, c"]


class Scripted:
    """A runtime whose texts are hashes of their prompts. `fault(tokens)` may change the next token."""

    def __init__(self, folder: Path):
        write_tokenizer(folder)
        self.tokenizer, self.capacity, self.info = Tokenizer.from_folder(with_template(folder, TEMPLATE)), 4096, {}
        self.vocab_size = 97
        self.fault: Any = None

    def batch(self, most: int) -> OneByOne:
        return OneByOne(self.decoder, 2)

    def bound(self, most: int) -> BoundRows:
        return hashed_rows(most)

    def decoder(self, sampling: Sampling) -> StepBackend:
        def target(tokens: Any) -> int:
            token = 1 + hashed(tokens) % 90
            return token if self.fault is None else self.fault(tokens, token)

        return StepBackend(ScriptedModel(target, iter(lambda: 1, None), 2, self.capacity))


@contextmanager
def listening(app: Any) -> Iterator[str]:
    """The address of `app`, under uvicorn in a thread."""
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="critical", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(10)


@contextmanager
def served(runtime: Scripted, **options: Any) -> Iterator[tuple[str, Engine]]:
    engine = Engine(lambda: runtime, EngineOptions(64))
    engine.start()
    served = Served(("tiny", "default"), runtime.tokenizer, runtime.capacity, Sampling(), 16)
    with listening(make_app(Server(engine, served, runtime.info, None, options.get("most_bytes", 1 << 20)))) as url:
        yield url, engine


def body(prompt: str, **options: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": [{"role": "user", "content": prompt}], "temperature": 0} | options


def test_a_load_counts_what_the_server_says(tmp_path: Path) -> None:
    with served(Scripted(tmp_path)) as (url, _):
        bodies = [streamed(body(prompt), {"max_tokens": 5 + i}) for i, prompt in enumerate(PROMPTS)]
        result = asyncio.run(load(url, 3, bodies))
    assert sorted(each.tokens for each in result.asked) == [5, 6, 7, 8] and not any(each.error for each in result.asked)
    for each in result.asked:
        assert len(each.text) == each.tokens and 0 < each.first <= each.last <= result.seconds


def test_a_refusal_and_a_stream_without_an_end_are_errors(tmp_path: Path) -> None:
    async def half(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b'data: {"choices": [{"delta": {"content": "so"}}]}\n\n'})

    with served(Scripted(tmp_path)) as (url, _):
        refused = asyncio.run(load(url, 1, [streamed(body("x"), {"max_tokens": 0})])).asked
    with listening(half) as url:
        broken = asyncio.run(load(url, 1, [streamed(body("x"), {})])).asked
    unreachable = asyncio.run(load(f"http://127.0.0.1:{free_port()}", 1, [streamed(body("x"), {})])).asked
    assert refused[0].error is not None and "status 400" in refused[0].error
    assert broken[0].error == "the stream ended without [DONE]" and broken[0].text == "so"
    assert unreachable[0].error is not None and "ConnectionRefused" in unreachable[0].error


def test_figures() -> None:
    mine = [
        Load(2, 2.0, [Asked(11, 0.5, 1.5, [0.1, 0.9], "x"), Asked(9, 1.0, 2.0, [], "y")]),
        Load(2, 1.0, [Asked(30, 0.1, 1, [], "z")]),
    ]
    theirs = [Load(2, 2.0, [Asked(10, 1, 2, [], "x")]), Load(2, 2.0, [Asked(error="status 500")])]
    found = figures(mine, theirs)
    assert found["tokens"] == 50 and found["tokens_per_second"] == 20 and found["ratios"] == [2.0]  # 10/s over 5/s
    assert found["first_p50"] == 0.5 and found["first_p95"] == 1.0 and found["gap_p95"] == 0.9
    assert found["between_p50"] == pytest.approx(0.1)
    assert figures(theirs, theirs)["errors"] == 1
    said = describe(summary({"ours": {2: mine}, "theirs": {2: theirs}}, "theirs"))
    assert "theirs, 2 clients: status 500" in said and "2.00" in said
    assert found["tokens_per_cpu_second"] is None and found["cpu_ratio"] is None
    for each, cpu in zip([*mine, *theirs], (4.0, 2.0, 5.0, 0.0), strict=True):
        each.cpu = cpu
    found = figures(mine, theirs)
    assert found["tokens_per_cpu_second"] == 10 and found["cpu_ratio"] == 2.5  # 20 and 30 in 4 and 2 s; 10 in 5 s, none in 0
    assert quantile([3.0, 1.0, 2.0], 0.95) == 3.0 and quantile([], 0.5) is None


def test_servers_by_name() -> None:
    assert of_words("a=http://localhost:80/").url == "http://localhost:80"
    assert of_words("a=x serve 'b c' --port {port}").command == ("x", "serve", "b c", "--port", "{port}")
    for wrong in ("http://x", "a=x serve", "=x {port}"):
        with pytest.raises(ValueError, match="expected"):
            of_words(wrong)


def test_environments_and_models(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = [of_words("a=x {port}"), of_words("b=http://x:1")]
    a, b = with_models(with_environments(asked, [("a", "A=1"), ("a", "B=c=d")]), [("b", "m")])
    assert a.environment == {"A": "1", "B": "c=d"} and a.model is None
    assert b.environment == {} and b.model == "m"
    for pair, said in ((("c", "A=1"), "expected one of: a, b"), (("a", "A"), "VARIABLE=VALUE"), (("b", "A=1"), "started here")):
        with pytest.raises(ValueError, match=said):
            with_environments([a, b], [pair])
    with pytest.raises(ValueError, match="--model: got 'c'"):
        with_models([a, b], [("c", "m")])
    monkeypatch.setattr("tools.bench_serve.servers.library_for_others", lambda: "libfast.so")
    peer = of_mlx_lm("org/model")
    assert peer.environment == {"LD_PRELOAD": "libfast.so"} and peer.model == "default_model"
    assert with_environments([peer], [(peer.name, "LD_PRELOAD=")])[0].environment == {"LD_PRELOAD": ""}


WORKS = """
import os, sys, http.server, time
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        said = os.environ["SAID"].encode()
        self.send_response(200); self.send_header("content-length", str(len(said))); self.end_headers(); self.wfile.write(said)
        until = time.process_time() + 0.3
        while time.process_time() < until: pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_the_system_knows_what_a_server_takes(tmp_path: Path) -> None:
    script = tmp_path / "works.py"
    script.write_text(WORKS)
    wanted = Wanted("a", command=(sys.executable, str(script), "{port}"), model="m", environment={"SAID": "hello"})

    async def run() -> None:
        async with started([wanted], tmp_path) as servers:
            before = servers[0].cpu_seconds()
            assert await get(servers[0].url, "/anything") == b"hello"
            assert servers[0].blas() == "its own"
        after = servers[0].cpu_seconds()
        assert before is not None and after is None  # it has ended

        process = subprocess.Popen([sys.executable, "-c", "import time\nwhile time.process_time() < 0.7: pass\ninput()"],
                                   stdin=subprocess.PIPE, start_new_session=True)  # fmt: skip
        while (cpu_seconds(process.pid) or 0) < 0.5:
            await asyncio.sleep(0.05)
        end(process)
        assert cpu_seconds(process.pid) is None

    asyncio.run(run())


def test_memory_and_rest() -> None:
    assert grown([1] * 9) is None
    assert grown([5, 5, 100, 130, 100, 100, 100, 100, 150, 110]) == pytest.approx(0.1)
    assert busy({"status": "ok", "waiting": 0, "mtpd_requests_running": 0.0}) == []
    assert busy({"status": "ok", "waiting": 1, "integrity": "row 3 is nobody's"}) == [
        "waiting 1",
        'integrity "row 3 is nobody\'s"',
    ]


def under_faults(runtime: Scripted, count: int) -> tuple[Any, list[str]]:
    """What `count` requests come to, with texts that are known from the runtime as it was before."""
    with served(runtime) as (url, _):
        known = []
        for i, prompt in enumerate(PROMPTS):
            asked = streamed(body(prompt), {"max_tokens": 3 + i})
            known.append((body(prompt, max_tokens=3 + i), asyncio.run(load(url, 1, [asked])).asked[0].text))
        target = Target(url, "tiny", known, "word " * 2000, largest=1 << 20)
        return asyncio.run(run(target, url, count))


async def run(target: Target, url: str, count: int) -> tuple[Any, list[str]]:
    async def step(done: int) -> None: ...

    found = await faults(target, count, 8, seed=1, step=step)
    return found, await come_to_rest(Asked_Server("tiny", url, "tiny"))


def test_the_server_stands_faults(tmp_path: Path) -> None:
    found, left = under_faults(Scripted(tmp_path), 300)
    assert (found.wrong, found.wrongs, left) == ([], 0, [])
    assert found.kinds.total() == 300 and len(found.kinds) == 13 and found.statuses["400"] > 20 < found.statuses["200"]


def test_a_wrong_text_and_an_error_are_found(tmp_path: Path) -> None:
    runtime = Scripted(tmp_path / "a")
    with served(runtime) as (url, _):
        target = Target(url, "tiny", [(body("hello", max_tokens=3), "not what it says")], "word " * 2000, largest=1 << 20)
        found, left = asyncio.run(run(target, url, 40))
    assert found.wrongs > 3 and "expected 'not what it says'" in "".join(found.wrong) and left == []

    def broken(tokens: Any, token: int) -> int:
        raise RuntimeError("the device is gone")

    runtime.fault = broken
    with served(runtime) as (url, _):
        target = Target(url, "tiny", [(body("hello", max_tokens=3), "x")], "word " * 2000, largest=1 << 20)
        found, _ = asyncio.run(run(target, url, 40))
    assert found.statuses["500"] and found.wrongs


def test_the_command(tmp_path: Path) -> None:
    prompts = tmp_path / "p.txt"
    prompts.write_text("\n".join(PROMPTS))
    with served(Scripted(tmp_path / "model")) as (url, _):
        done = tool("bench_serve", tmp_path / "out", "--server", f"a={url}", "--prompts", prompts, "--clients", 1, 2,
                    "--repeats", 2, "--max-tokens", 4)  # fmt: skip
        assert done.returncode == 0, done.stderr
        found = json.loads((tmp_path / "out" / "load.json").read_text())
        assert found["servers"]["a"]["2"]["tokens"] == 2 * 2 * 2 * 4 and found["servers"]["a"]["1"]["ratio"] == 1.0
        assert found["conditions"]["machine"] and found["settings"]["clients"] == [1, 2]
        assert "ms/token" in done.stdout
        done = tool("bench_serve", tmp_path / "out", "--server", f"a={url}", "--prompts", prompts, "--faults", 60,
                    "--clients", 4, "--too-long", 2000)  # fmt: skip
        assert done.returncode == 0, done.stderr
    for words, said in ((["--prompts", prompts], "no servers"), (["--prompts", prompts, "--server", "a"], "expected NAME=URL")):
        done = tool("bench_serve", tmp_path / "out", *words)
        assert done.returncode == 1 and said in done.stderr
    done = tool("bench_serve", tmp_path / "out", "--prompts", prompts, "--server", f"a={sys.executable} -c 1 {{port}}")
    assert done.returncode == 1 and "does not come up" in done.stderr


@pytest.mark.slow
def test_a_killed_server_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a file that is changed is found."""
    base = write_base(tmp_path / "base")
    with_template(base)
    checkpoint, trace = write_checkpoint(tmp_path / "heads", base, 2), tmp_path / "trace.jsonl"
    command = (sys.executable, "-m", "mtpd_mlx.cli", "serve", str(checkpoint), "--trace", str(trace), "--port", "{port}")
    asked = [{"messages": [{"role": "user", "content": prompt}]} for prompt in PROMPTS]
    found = asyncio.run(survive(Wanted("a", command=command), asked, 2, 0, tmp_path / "logs"))
    assert found["failed"] == [] and found["events"] > 0 and found["files"] >= 2
    lines = trace.read_text().splitlines()
    assert sum('"open"' in line for line in lines) == 3
    broken = []
    for line in lines:
        try:
            json.loads(line)
        except ValueError:
            broken.append(line)
    assert len(broken) <= 2, "half a line of each killed server at most"
    monkeypatch.setenv(CACHE, str(tmp_path / "caches"))
    assert damaged() == []
    (tmp_path / "caches").mkdir()
    (tmp_path / "caches" / NAME).write_text('{"half')
    assert len(damaged()) == 1
    before = files_of(Wanted("a", command=command))
    (checkpoint / "mtp_config.json").write_text((checkpoint / "mtp_config.json").read_text() + " ")
    assert files_of(Wanted("a", command=command)) != before
