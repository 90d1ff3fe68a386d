"""`Faults`: clients that go away, bodies cut off, bytes that are no JSON, prompts too long, wrong types.
Called by bench_serve/endurance.py.

`faults` sends them from many clients at once, among requests that are right and whose texts are known. What has to hold: every
answer has the status that its fault deserves, the texts are the known ones, and in the end the server is alive and idle, with
nothing left of the requests (idle.py) and no more memory than at first. __main__.py calls it.
"""

import asyncio
import json
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from tools.bench_serve.load import CHAT, COMPLETION
from tools.bench_serve.wire import Connection, connection

SECONDS = 300.0  # that one request may take
BUSY = 429  # a full queue may refuse any request that would be decoded
SHOWN = 10  # wrong answers that are kept
Check = Callable[[int, bytes], str | None]


@dataclass
class Faults:
    """What came of them: counts by kind of request, by status, and the first answers that were wrong."""

    kinds: Counter[str] = field(default_factory=Counter)
    statuses: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    wrongs: int = 0

    def saw(self, kind: str, status: str, wrong: str | None) -> None:
        self.kinds[kind] += 1
        self.statuses[status] += 1
        if wrong:
            self.wrongs += 1
            self.wrong += [f"{kind}: {wrong}"] * (len(self.wrong) < SHOWN)


@dataclass(frozen=True)
class Target:
    """The server, and what is asked of it. known: bodies of requests and the texts of their answers. too_long: a prompt with
    more tokens than its context. largest: bytes of the largest body it takes."""

    url: str
    model: str
    known: list[tuple[dict[str, Any], str]]
    too_long: str
    largest: int = 16 << 20


class Client:
    """One client: draws kinds of requests from `rng`."""

    def __init__(self, target: Target, found: Faults, rng: random.Random):
        self.target, self.found, self.rng = target, found, rng
        self.kinds: dict[str, tuple[int, Callable[[Connection], Awaitable[tuple[str, str | None]]]]] = {
            "whole": (12, self.whole),
            "several": (1, self.several),
            "scored": (1, self.scored),
            "stream": (14, self.stream),
            "gone before the answer": (14, self.gone_before),
            "gone in the stream": (16, self.gone_in_stream),
            "cut body": (10, self.cut_body),
            "bad JSON": (12, self.bad_json),
            "wrong type": (12, self.wrong_type),
            "prompt too long": (4, self.prompt_too_long),
            "body too large": (1, self.body_too_large),
            "no HTTP": (2, self.no_http),
            "no such path": (2, self.no_such_path),
        }

    async def once(self) -> None:
        kind = self.rng.choices(list(self.kinds), [weight for weight, _ in self.kinds.values()])[0]
        try:
            async with asyncio.timeout(SECONDS), connection(self.target.url) as each:
                status, wrong = await self.kinds[kind][1](each)
        except (OSError, EOFError, ValueError, TimeoutError) as error:
            status, wrong = "none", f"{type(error).__name__}: {error}"
        self.found.saw(kind, status, wrong)

    def _known(self, **options: Any) -> tuple[dict[str, Any], str]:
        body, text = self.rng.choice(self.target.known)
        return body | options, text

    async def _expect(self, each: Connection, path: str, body: Any, *statuses: int) -> tuple[str, str | None]:
        answer = await each.ask("POST", path, body)
        said = await answer.body()
        right = answer.status in statuses and is_error(said)
        return str(answer.status), None if right else f"status {answer.status}, expected {statuses}: {said[:120]!r}"

    async def whole(self, each: Connection) -> tuple[str, str | None]:
        body, text = self._known()
        answer = await each.ask("POST", path_of(body), body)
        said = await answer.body()
        if answer.status == BUSY:
            return "429", None
        got = text_of(json.loads(said)["choices"][0]) if answer.status == 200 else f"status {answer.status}: {said[:120]!r}"
        return str(answer.status), None if got == text else f"got {got!r}, expected {text!r}"

    async def several(self, each: Connection) -> tuple[str, str | None]:
        """Two texts of one prompt."""
        body, text = self._known(n=2)
        status, choices = await self._choices(each, body)
        right = status == "429" or [text_of(choice) for choice in choices] == [text] * 2
        return status, None if right else f"status {status}: {choices}, expected {text!r} twice"

    async def scored(self, each: Connection) -> tuple[str, str | None]:
        """A text whose tokens and their log-probabilities are told."""
        body, _ = self._known()
        body |= {"logprobs": True, "top_logprobs": 2} if "messages" in body else {"logprobs": 2}
        status, choices = await self._choices(each, body)
        if status == "429":
            return status, None
        told = [scores_of(choice) for choice in choices]
        right = len(told) == 1 and all(logprob <= 1e-4 for _, logprob in told[0])
        said = "".join(token for token, _ in told[0]) if right else None
        right = said is not None and said.startswith(text_of(choices[0]))  # the token that ends a completion comes behind it
        return status, None if right else f"status {status}: {choices}"

    async def _choices(self, each: Connection, body: dict[str, Any]) -> tuple[str, list[dict[str, Any]]]:
        """Status and choices of a whole answer; none where the status is not 200."""
        answer = await each.ask("POST", path_of(body), body)
        said = await answer.body()
        return str(answer.status), json.loads(said)["choices"] if answer.status == 200 else []

    async def stream(self, each: Connection) -> tuple[str, str | None]:
        body, text = self._known(stream=True)
        answer = await each.ask("POST", path_of(body), body)
        if answer.status == BUSY:
            return "429", None
        said = [event async for event in answer.events()]
        if answer.status != 200 or said[-1:] != ["[DONE]"]:
            return str(answer.status), f"status {answer.status}, the stream ends with {said[-1:]}"
        got = "".join(text_of(choice) for event in said[:-1] for choice in json.loads(event).get("choices", []))
        return "200", None if got == text else f"got {got!r}, expected {text!r}"

    async def gone_before(self, each: Connection) -> tuple[str, str | None]:
        body, _ = self._known(stream=self.rng.random() < 0.5, max_tokens=400)
        content = json.dumps(body).encode()
        await each.send(each.head("POST", path_of(body), len(content)) + content)
        await asyncio.sleep(self.rng.choice([0, 0, 0.01, 0.1]))
        each.reset()
        return "gone", None

    async def gone_in_stream(self, each: Connection) -> tuple[str, str | None]:
        body, _ = self._known(stream=True, max_tokens=400)
        answer = await each.ask("POST", path_of(body), body)
        for _ in range(self.rng.randrange(1, 12)):
            if not await answer.reader.readline():
                break
        if self.rng.random() < 0.5:
            each.reset()
        return "gone", None if answer.status in (200, BUSY) else f"status {answer.status}"

    async def cut_body(self, each: Connection) -> tuple[str, str | None]:
        body, _ = self._known()
        content = json.dumps(body).encode()
        await each.send(each.head("POST", path_of(body), len(content)) + content[: self.rng.randrange(len(content))])
        each.reset()
        return "gone", None

    async def bad_json(self, each: Connection) -> tuple[str, str | None]:
        body, _ = self._known()
        content = bytearray(json.dumps(body).encode())
        how = self.rng.randrange(4)
        if how == 0:
            content = content[: self.rng.randrange(len(content))]
        elif how == 1:
            content[0:1] = b"[" * self.rng.choice([1, 100_000])
        elif how == 2:
            content = bytearray(self.rng.randbytes(self.rng.randrange(1, 200)))
        else:
            content = bytearray(self.rng.choice([b"null", b"3", b'"text"', b"[]", b"{}", b'{"messages": NaN', b"\xff\xfe{}"]))
        return await self._expect(each, path_of(body), bytes(content), 400)

    async def wrong_type(self, each: Connection) -> tuple[str, str | None]:
        wrong = self.rng.choice(
            [
                {"temperature": "hot"},
                {"temperature": -1},
                {"top_p": [1]},
                {"top_k": 1.5},
                {"seed": "x"},
                {"max_tokens": 0},
                {"max_tokens": "many"},
                {"stop": [1]},
                {"stop": [""]},
                {"stream": "yes"},
                {"stream_options": {"include_usage": True}},
                {"n": 0},
                {"no_such_field": 1},
                {"repetition_penalty": True},
                {"messages": "hello"} if "messages" in self.target.known[0][0] else {"prompt": {"text": 1}},
                {"messages": [{"role": "pirate", "content": 3}]} if "messages" in self.target.known[0][0] else {"prompt": [-1]},
                {"messages": []} if "messages" in self.target.known[0][0] else {"prompt": [[[]]]},
            ]
        )
        body, _ = self._known(**wrong)
        return await self._expect(each, path_of(body), body, 400)

    async def prompt_too_long(self, each: Connection) -> tuple[str, str | None]:
        long = self.target.too_long
        said = {"messages": [{"role": "user", "content": long}]} if "messages" in self.target.known[0][0] else {"prompt": long}
        body = {"model": self.target.model} | said
        return await self._expect(each, path_of(body), body, 400)

    async def body_too_large(self, each: Connection) -> tuple[str, str | None]:
        """The server may close while it is sent: whether it answers first is the network's matter."""
        try:
            return await self._expect(each, CHAT, b'{"prompt": "' + b"x" * self.target.largest + b'"}', 413)
        except OSError:
            return "gone", None

    async def no_http(self, each: Connection) -> tuple[str, str | None]:
        """An answer with an error, or none."""
        await each.send(self.rng.choice([b"\r\n\r\n", b"GET\r\n\r\n", self.rng.randbytes(64) + b"\r\n\r\n"]))
        each.writer.write_eof()
        try:
            answer = await each.answer()
        except OSError:
            return "gone", None
        return str(answer.status), None if answer.status >= 400 else f"status {answer.status}"

    async def no_such_path(self, each: Connection) -> tuple[str, str | None]:
        return await self._expect(each, self.rng.choice(["/v1/nothing", "/health", "/v1/models"]), {}, 404, 405)


async def faults(target: Target, count: int, clients: int, seed: int, step: Callable[[int], Awaitable[None]]) -> Faults:
    """`count` requests from `clients` at once. `step` is called with the number of requests that are done, after each."""
    found, left = Faults(), iter(range(count))

    async def client(number: int) -> None:
        own = Client(target, found, random.Random(f"{seed} {number}"))
        for _ in left:
            await own.once()
            await step(found.kinds.total())

    await asyncio.gather(*(client(number) for number in range(clients)))
    return found


def path_of(body: dict[str, Any]) -> str:
    return CHAT if "messages" in body else COMPLETION


def text_of(choice: dict[str, Any]) -> str:
    """Of a choice of a whole answer or of a chunk, of a chat or a completion."""
    said = choice.get("message") or choice.get("delta") or {"content": choice.get("text")}
    return said.get("content") or ""


def scores_of(choice: dict[str, Any]) -> list[tuple[str, float]]:
    """Tokens and log-probabilities of a whole answer's choice."""
    told = choice["logprobs"]
    if "content" in told:
        return [(each["token"], each["logprob"]) for each in told["content"]]
    return list(zip(told["tokens"], told["token_logprobs"], strict=True))


def is_error(said: bytes) -> bool:
    """Whether it is an error in the API's form."""
    try:
        return isinstance(json.loads(said)["error"]["message"], str)
    except (ValueError, KeyError, TypeError):
        return False
