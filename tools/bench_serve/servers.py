"""`Server`: servers under load, those that run already and those that are started here, each on its own port.
Called by bench_serve/__main__.py, endurance.py and idle.py."""

import asyncio
import contextlib
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from mtpd_mlx.model.blas import library_for_others
from tools.bench_serve.processes import blas_of, cpu_seconds
from tools.bench_serve.wire import get
from tools.paths import python_path

READY, END = 300.0, 15.0  # seconds until a server answers, and until one that is told to end is killed


@dataclass(frozen=True)
class Wanted:
    """A server by its name: `url` of one that runs, or the `command` that starts one, in which {port} stands for its port.
    model: what requests name; None: what /v1/models says first. environment: variables it is started with."""

    name: str
    url: str | None = None
    command: tuple[str, ...] = ()
    model: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)


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

    def cpu_seconds(self) -> float | None:
        """Processor time that it and what it started have taken so far; None as above."""
        return None if self.pid is None else cpu_seconds(self.pid)

    def blas(self) -> str | None:
        """The library that its matrix products come from (processes.py); None as above."""
        return None if self.pid is None else blas_of(self.pid)


def of_onnx(folder: Path) -> Wanted:
    return Wanted(f"onnx {folder.name}", command=(sys.executable, "-m", "mtpd_onnx", "serve", str(folder), "--port", "{port}"))


def of_mlx(checkpoint: str) -> Wanted:
    name = f"mlx {Path(checkpoint).name}"
    return Wanted(name, command=(sys.executable, "-m", "mtpd_mlx.cli", "serve", checkpoint, "--port", "{port}"))


def of_mlx_lm(model: str) -> Wanted:
    """On the BLAS that `mtpd` loads, which its own wheel has not. `default_model` is the model that it was started with;
    /v1/models lists what the hub's cache has."""
    command = (sys.executable, "-m", "mlx_lm", "server", "--model", model, "--port", "{port}", "--host", "127.0.0.1")
    library = library_for_others()
    environment = {} if library is None else {"LD_PRELOAD": library}
    return Wanted(f"mlx_lm.server {Path(model).name}", command=command, model="default_model", environment=environment)


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


def named(wanted: Sequence[Wanted], pairs: Sequence[tuple[str, str]], option: str) -> list[list[str]]:
    """The values that `option` (pairs of NAME VALUE) gives each server. ValueError where nobody has that name."""
    names = [each.name for each in wanted]
    for name, _ in pairs:
        if name not in names:
            raise ValueError(f"{option}: got {name!r}, expected one of: {', '.join(names)}")
    return [[value for name, value in pairs if name == each.name] for each in wanted]


def with_environments(wanted: Sequence[Wanted], pairs: Sequence[tuple[str, str]]) -> list[Wanted]:
    """`pairs`: NAME VARIABLE=VALUE."""
    found = []
    for each, said in zip(wanted, named(wanted, pairs, "--env"), strict=True):
        own = dict(each.environment)
        for word in said:
            variable, sign, value = word.partition("=")
            if not variable or not sign or not each.command:
                raise ValueError(f"--env: got {word!r} for {each.name}, expected VARIABLE=VALUE for a server started here")
            own[variable] = value
        found.append(replace(each, environment=own))
    return found


def with_models(wanted: Sequence[Wanted], pairs: Sequence[tuple[str, str]]) -> list[Wanted]:
    """`pairs`: NAME MODEL, the last one holds."""
    models = named(wanted, pairs, "--model")
    return [replace(each, model=said[-1]) if said else each for each, said in zip(wanted, models, strict=True)]


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
        environment = os.environ | python_path() | dict(wanted.environment)
        process = subprocess.Popen(command, stdout=out, stderr=out, env=environment, start_new_session=True)
    processes.append(process)
    url = f"http://127.0.0.1:{port}"
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(READY):
            while process.poll() is None:
                with contextlib.suppress(OSError, ValueError):
                    return Server(wanted.name, url, await name_of(wanted, url), process.pid)
                await asyncio.sleep(0.2)
    said = log.read_text(errors="replace").strip().splitlines()[-1:] or ["nothing"]
    hint = "" if process.poll() is not None or wanted.model else "; where it has no /v1/models, name its model with --model"
    raise ValueError(f"{wanted.name}: does not come up; it said last: {said[0]} ({log}){hint}")


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
