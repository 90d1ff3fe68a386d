"""`endure`: one server under faults.py, and whether it survived.
Called by bench_serve/__main__.py."""

import json
import sys
from typing import Any

from tools.bench_serve.faults import Target, faults, path_of, text_of
from tools.bench_serve.idle import GROWTH, come_to_rest, grown, held_by
from tools.bench_serve.servers import Server
from tools.bench_serve.wire import connection, get

KNOWN, LONGEST = 12, 24  # requests whose answers are asked for before, and tokens of each at most
SAMPLES = 50  # of memory


async def known_answers(server: Server, asked: list[dict[str, Any]]) -> list[tuple[dict[str, Any], str]]:
    """Greedy requests and their answers, one after the other. ConnectionError where one has none."""
    found = []
    for i, said in enumerate(asked[:KNOWN]):
        body = said | {"model": server.model, "max_tokens": 1 + (7 * i) % LONGEST, "temperature": 0}
        async with connection(server.url) as each:
            answer = await each.ask("POST", path_of(body), body)
            content = await answer.body()
        if answer.status != 200:
            raise ConnectionError(f"{server.name}: status {answer.status}: {content[:200]!r}")
        found.append((body, text_of(json.loads(content)["choices"][0])))
    return found


async def endure(
    server: Server, asked: list[dict[str, Any]], count: int, clients: int, seed: int, words: int
) -> dict[str, Any]:
    """What came of `count` requests, and `failed`: what did not hold (nothing where all did). The known texts are asked for
    again at the end. words: of a prompt that is too long."""
    known, samples = await known_answers(server, asked), list[int]()

    async def step(done: int) -> None:
        if done % max(1, count // SAMPLES) == 0 and (held := await held_by(server)) is not None:
            samples.append(held)
            print(f"{server.name}: {done} of {count}, {held / 1e6:.0f} MB", file=sys.stderr, flush=True)

    target = Target(server.url, server.model, known, "word " * words)
    found = await faults(target, count, clients, seed, step)
    failed = [*found.wrong, *await come_to_rest(server)]
    try:
        again = await known_answers(server, asked)
        failed += ["the texts after the faults are not those before"] if again != known else []
        await get(server.url, "/metrics")
    except OSError as error:
        failed.append(f"after the faults: {error}")
    growth = grown(samples)
    if growth is not None and growth > GROWTH:
        failed.append(f"memory grew by {growth:.1%}, expected at most {GROWTH:.0%}")
    for line in failed:
        print(f"{server.name}: {line}", file=sys.stderr)
    memory = f", memory {growth:+.1%}" if growth is not None else ""
    print(f"{server.name}: {found.kinds.total()} requests, {found.wrongs} answered wrongly, {len(failed)} failures{memory}")
    counts = {"kinds": dict(found.kinds), "statuses": dict(found.statuses), "wrong": found.wrongs}
    return {"server": server.name, "clients": clients, "seed": seed, "failed": failed, "memory": samples} | counts
