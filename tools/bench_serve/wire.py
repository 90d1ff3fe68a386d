"""`Connection`: HTTP/1.1 by hand over asyncio (answers as they come, bodies cut off, bytes that are no request).
Called by load.py and faults.py: a client library hides when the first byte came, and sends nothing broken."""

import asyncio
import json
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

SECONDS = 600.0  # without a byte, after which an answer is given up


@dataclass
class Answer:
    """`reader`: where the body is read from."""

    status: int
    headers: dict[str, str]
    reader: asyncio.StreamReader = field(repr=False)

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body as it comes: chunked, of a stated length, or up to the end of the connection."""
        if "chunked" in self.headers.get("transfer-encoding", ""):
            while size := int((await self.reader.readline()).split(b";")[0] or b"0", 16):
                yield await self.reader.readexactly(size)
                await self.reader.readline()
            return
        left = int(self.headers["content-length"]) if "content-length" in self.headers else None
        while left is None or left > 0:
            piece = await self.reader.read(1 << 16 if left is None else min(left, 1 << 16))
            if not piece:
                if left is not None:
                    raise ConnectionError(f"the body ended {left} bytes early")
                return
            left = None if left is None else left - len(piece)
            yield piece

    async def body(self) -> bytes:
        return b"".join([piece async for piece in self.pieces()])

    async def events(self) -> AsyncIterator[str]:
        """What server-sent events say, without `data: `."""
        held = b""
        async for piece in self.pieces():
            *lines, held = (held + piece).split(b"\n")
            for line in lines:
                if line.startswith(b"data: "):
                    yield line.removeprefix(b"data: ").decode().rstrip("\r")


class Connection:
    """One connection to `url`. `reset` ends it without the other side's consent."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str):
        self.reader, self.writer, self.host = reader, writer, host

    async def send(self, content: bytes) -> None:
        self.writer.write(content)
        await self.writer.drain()

    def head(self, method: str, path: str, length: int) -> bytes:
        lines = (
            f"{method} {path} HTTP/1.1",
            f"Host: {self.host}",
            "Content-Type: application/json",
            f"Content-Length: {length}",
            "Connection: close",
        )
        return "".join(f"{line}\r\n" for line in (*lines, "")).encode()

    async def ask(self, method: str, path: str, body: Any = None) -> Answer:
        """`body`: an object to send as JSON, or bytes as they are."""
        content = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        await self.send(self.head(method, path, len(content)) + content)
        return await self.answer()

    async def answer(self) -> Answer:
        """Its status and headers. ConnectionError where none came."""
        first = (await self.reader.readline()).split()
        if len(first) < 2 or not first[0].startswith(b"HTTP/"):
            raise ConnectionError(f"no answer (got {b' '.join(first)[:60]!r})")
        headers = {}
        while line := (await self.reader.readline()).decode("latin-1").strip():
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        return Answer(int(first[1]), headers, self.reader)

    def reset(self) -> None:
        sock = self.writer.get_extra_info("socket")
        with suppress(OSError, AttributeError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


@asynccontextmanager
async def connection(url: str) -> AsyncIterator[Connection]:
    parts = urlsplit(url)
    assert parts.hostname is not None
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port or 80, limit=1 << 20)
    try:
        yield Connection(reader, writer, parts.netloc)
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


async def get(url: str, path: str) -> bytes:
    """The body of an answer with status 200; else ConnectionError."""
    async with asyncio.timeout(SECONDS), connection(url) as asked:
        answer = await asked.ask("GET", path)
        content = await answer.body()
        if answer.status != 200:
            raise ConnectionError(f"GET {path}: status {answer.status}")
        return content
