"""`load`: a number of clients at once, one request after the other, each timed as its client saw it.
Called by bench_serve/__main__.py and faults.py."""

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tools.bench_serve.wire import SECONDS, connection

CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"


@dataclass
class Asked:
    """One request. Seconds from sending on; `last`: of the last piece of text; gaps: between two pieces. error: None, or why it
    has no answer. tokens: as the server counted them."""

    tokens: int = 0
    first: float = 0.0
    last: float = 0.0
    gaps: list[float] = field(default_factory=list)
    text: str = ""
    error: str | None = None

    @property
    def between(self) -> float | None:
        """Seconds a token after the first one."""
        return (self.last - self.first) / (self.tokens - 1) if self.tokens > 1 else None


@dataclass
class Load:
    """What so many clients got. seconds: from the first request to the last answer; cpu: the processor time that the server
    took meanwhile, None where that is not known."""

    clients: int
    seconds: float
    asked: list[Asked]
    cpu: float | None = None


def streamed(said: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """The body of a streamed request that says so: {"messages": ...} or {"prompt": ...}."""
    return said | {"stream": True, "stream_options": {"include_usage": True}} | options


async def ask(url: str, body: dict[str, Any]) -> Asked:
    """One streamed request, read to its end: a chat, or the completion of a prompt."""
    asked, began = Asked(), time.perf_counter()
    try:
        async with asyncio.timeout(SECONDS), connection(url) as each:
            answer = await each.ask("POST", CHAT if "messages" in body else COMPLETION, body)
            if answer.status != 200:
                asked.error = f"status {answer.status}: {(await answer.body()).decode(errors='replace')[:200]}"
                return asked
            done = False
            async for said in answer.events():
                done = done or said == "[DONE]"
                if said != "[DONE]":
                    _read(asked, json.loads(said), time.perf_counter() - began)
            if not done:
                asked.error = asked.error or "the stream ended without [DONE]"
    except (OSError, ValueError, EOFError, TimeoutError) as error:
        asked.error = f"{type(error).__name__}: {error}"
    return asked


def _read(asked: Asked, event: dict[str, Any], now: float) -> None:
    if event.get("error"):
        asked.error = str(event["error"])[:200]
    if event.get("usage"):
        asked.tokens = event["usage"]["completion_tokens"]
    for choice in event.get("choices", []):
        if text := choice.get("delta", {}).get("content") or choice.get("text"):
            if asked.text:
                asked.gaps.append(now - asked.last)
            else:
                asked.first = now
            asked.last = now
            asked.text += text


async def load(url: str, clients: int, bodies: Sequence[dict[str, Any]]) -> Load:
    """`clients` at once share the requests: whoever has an answer takes the next one."""
    left, asked = iter(bodies), list[Asked]()

    async def client() -> None:
        for body in left:
            asked.append(await ask(url, body))

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    return Load(clients, time.perf_counter() - began, asked)
