"""`busy`, `grown`: whether a server that nobody asks is alive and idle, with nothing left of requests; its memory.
Called by bench_serve/endurance.py."""

import asyncio
import json
import re
import time
from typing import Any

from tools.bench_serve.servers import Server
from tools.bench_serve.wire import get

SECONDS = 60.0  # until what was called off is gone
GROWTH = 0.05  # of memory that counts as none


async def state(server: Server) -> dict[str, Any]:
    """What /health and the gauges of /metrics say."""
    health: dict[str, Any] = json.loads(await get(server.url, "/health"))
    text = (await get(server.url, "/metrics")).decode()
    gauges = {name: float(value) for name, value in re.findall(r"^(mtpd_requests_(?:running|waiting)) (\S+)$", text, re.M)}
    return health | gauges


def busy(said: dict[str, Any]) -> list[str]:
    """What is not as it has to be where nobody asks; `leaked` and `integrity` are told by servers that batch."""
    numbers = ("waiting", "mtpd_requests_running", "mtpd_requests_waiting", "rows", "leaked")
    found = [f"{name} {said[name]}" for name in numbers if said.get(name)]
    if said.get("status") != "ok":
        found.append(f"status {said.get('status')!r}")
    if said.get("integrity", "ok") != "ok":
        found.append(f"integrity {said['integrity']!r}")
    return found


async def come_to_rest(server: Server) -> list[str]:
    """What is still wrong when nobody has asked for a while; nothing where all is well."""
    end = time.monotonic() + SECONDS
    while True:
        try:
            found = busy(await state(server))
        except (OSError, ValueError) as error:
            return [f"the server does not answer: {error}"]
        if not found or time.monotonic() > end:
            return found
        await asyncio.sleep(0.1)


async def held_by(server: Server) -> int | None:
    """Bytes of its process but for the prefix cache, which has a limit of its own; None where the system does not say."""
    resident = server.memory()
    if resident is None:
        return None
    cached = re.search(r"^mtpd_prefix_cache_bytes (\S+)$", (await get(server.url, "/metrics")).decode(), re.M)
    return resident - (int(float(cached[1])) if cached else 0)


def grown(samples: list[int]) -> float | None:
    """How much more memory the last fifth of the samples has than the second, at least each: large bodies and prompts are
    there for a moment, what is lost stays. None of too few."""
    if len(samples) < 10:
        return None
    fifth = len(samples) // 5
    return min(samples[-fifth:]) / min(samples[fifth : 2 * fifth]) - 1
