"""The servers under load: those that run already, and those that are started here, each on a port of its own."""

import asyncio
import contextlib
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tools.bench_serve.wire import get
from tools.paths import python_path

READY, END = 300.0, 15.0  # seconds until a server answers, and until one that is told to end is killed


@dataclass(frozen=True)
class Wanted:
    """A server by its name: `url` of one that runs, or the `command` that starts one, in which {port} stands for its port.
    model: what requests name; None: what /v1/models says first."""

    name: str
    url: str | None = None
    command: tuple[str, ...] = ()
    model: str | None = None


@dataclass
class Server:
    name: str
    url: str
    model: str
    pid: int | None = None

    def memory(self) -> int | None:
        """Resident bytes of its process; None where it was not started here or the system does not say."""
        try:
            pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        except (OSError, ValueError):
            return None
        return pages * os.sysconf("SC_PAGE_SIZE")


def of_onnx(folder: Path) -> Wanted:
    return Wanted(f"onnx {folder.name}", command=(sys.executable, "-m", "mtpd_onnx", "serve", str(folder), "--port", "{port}"))


def of_mlx(checkpoint: str) -> Wanted:
    name = f"mlx {Path(checkpoint).name}"
    return Wanted(name, command=(sys.executable, "-m", "mtpd_mlx.cli", "serve", checkpoint, "--port", "{port}"))


def of_mlx_lm(model: str) -> Wanted:
    """Its `default_model` is the one it was started with; /v1/models lists what the hub's cache has."""
    command = (sys.executable, "-m", "mlx_lm", "server", "--model", model, "--port", "{port}", "--host", "127.0.0.1")
    return Wanted(f"mlx_lm.server {Path(model).name}", command=command, model="default_model")


def of_words(words: str) -> Wanted:
    """NAME=URL of a server that runs, or NAME=COMMAND with {port} in it. ValueError for anything else."""
    name, sign, rest = words.partition("=")
    if not name or not sign:
        raise ValueError(f"got {words!r}, expected NAME=URL, or NAME=COMMAND with {{port}} in it")
    if rest.startswith("http://"):
        return Wanted(name, url=rest.rstrip("/"))
    if "{port}" not in rest:
        raise ValueError(f"{name}: got {rest!r}, expected an http:// address, or a command with {{port}} in it")
    return Wanted(name, command=tuple(shlex.split(rest)))


@contextlib.asynccontextmanager
async def started(wanted: Sequence[Wanted], logs: Path) -> AsyncIterator[list[Server]]:
    """All of them, ready. Those that are started here write to `logs`, and end with the block. ValueError where one does not
    come up."""
    logs.mkdir(parents=True, exist_ok=True)
    processes: list[subprocess.Popen[bytes]] = []
    try:
        servers = []
        for each in wanted:
            servers.append(await (_find(each) if each.url else _start(each, logs, processes)))
        yield servers
    finally:
        for process in processes:
            await asyncio.to_thread(end, process)


async def _find(wanted: Wanted) -> Server:
    assert wanted.url is not None
    try:
        return Server(wanted.name, wanted.url, await name_of(wanted, wanted.url))
    except (OSError, ValueError) as error:
        raise ValueError(f"{wanted.name}: {wanted.url} does not answer: {error}") from error


async def _start(wanted: Wanted, logs: Path, processes: list[subprocess.Popen[bytes]]) -> Server:
    port = free_port()
    command = [word.replace("{port}", str(port)) for word in wanted.command]
    log = logs / f"{''.join(c if c.isalnum() or c in '-.' else '_' for c in wanted.name)}.log"
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env=os.environ | python_path(), start_new_session=True)
    processes.append(process)
    url = f"http://127.0.0.1:{port}"
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(READY):
            while process.poll() is None:
                with contextlib.suppress(OSError, ValueError):
                    return Server(wanted.name, url, await name_of(wanted, url), process.pid)
                await asyncio.sleep(0.2)
    said = log.read_text(errors="replace").strip().splitlines()[-1:] or ["nothing"]
    raise ValueError(f"{wanted.name}: does not come up; it said last: {said[0]} ({log})")


async def name_of(wanted: Wanted, url: str) -> str:
    """The model's name, once the server answers; OSError until then."""
    await get(url, "/health")
    return wanted.model or str(json.loads(await get(url, "/v1/models"))["data"][0]["id"])


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def end(process: "subprocess.Popen[bytes]") -> None:
    """It and what it started."""
    for how in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, how)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(END)
            return
