"""`survive`: a server that is killed (SIGKILL) while it answers, again and again: its files stay, the next one starts.
Called by __main__.py (--kills)."""

import asyncio
import contextlib
import hashlib
import json
import os
import random
import signal
import sys
from pathlib import Path
from typing import Any

from mtpd_mlx.files.measured import costs_file
from tools.bench_serve.endurance import known_answers
from tools.bench_serve.faults import path_of
from tools.bench_serve.servers import Server, Wanted, started
from tools.bench_serve.wire import connection

STREAMS, LONGEST = 6, 2.0  # under way when it is killed; seconds after the first of them began at most
GONE = 20.0  # seconds in which every client must see that


def files_of(wanted: Wanted) -> dict[str, str]:
    """sha256 of every file in the folders that the server's command names."""
    folders = [Path(word) for word in wanted.command if Path(word).is_dir()]
    files = sorted(file for folder in folders for file in folder.rglob("*") if file.is_file())
    return {str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def damaged() -> list[str]:
    """What is wrong with the file of measured costs, which servers replace while they run."""
    file = costs_file()
    try:
        read = json.loads(file.read_bytes()) if file.exists() else {}
    except ValueError as error:
        return [f"{file}: {error}"]
    return [] if isinstance(read, dict) else [f"{file}: got {type(read).__name__}, expected an object"]


async def stream(server: Server, asked: dict[str, Any]) -> int:
    """Events until the server is gone."""
    seen = 0
    with contextlib.suppress(OSError, EOFError, ValueError):
        async with connection(server.url) as each:
            body = asked | {"model": server.model, "max_tokens": 400, "stream": True}
            answer = await each.ask("POST", path_of(body), body)
            async for _ in answer.events():
                seen += 1
    return seen


async def survive(wanted: Wanted, asked: list[dict[str, Any]], count: int, seed: int, logs: Path) -> dict[str, Any]:
    """Kills it `count` times. `failed`: what did not hold (nothing where all did); events: that clients saw meanwhile."""
    rng, before, failed = random.Random(seed), files_of(wanted), list[str]()
    known, events = None, 0
    for turn in range(count + 1):
        async with started([wanted], logs) as (server,):
            texts = await known_answers(server, asked)
            known = known or texts
            failed += [f"start {turn + 1}: the texts are not those of the first one"] if texts != known else []
            if turn == count:
                break
            clients = [asyncio.create_task(stream(server, rng.choice(asked))) for _ in range(STREAMS)]
            await asyncio.sleep(rng.uniform(0, LONGEST))
            assert server.pid is not None
            os.killpg(server.pid, signal.SIGKILL)
            done, hang = await asyncio.wait(clients, timeout=GONE)
            events += sum(each.result() for each in done)
            failed += [f"kill {turn + 1}: {len(hang)} clients still wait"] if hang else []
        after = files_of(wanted)
        changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
        failed += [f"kill {turn + 1}: {name} is not as it was" for name in changed]
        failed += [f"kill {turn + 1}: {line}" for line in damaged()]
        print(f"{wanted.name}: killed {turn + 1} of {count} times", file=sys.stderr, flush=True)
    for line in failed:
        print(f"{wanted.name}: {line}", file=sys.stderr)
    print(f"{wanted.name}: killed {count} times, {events} events seen, {len(before)} files, {len(failed)} failures")
    return {"server": wanted.name, "kills": count, "seed": seed, "events": events, "files": len(before), "failed": failed}
