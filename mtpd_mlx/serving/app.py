"""`make_app`: the routes, as an ASGI application over an engine.
Called by serving/run.py."""

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request as HttpRequest
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from mtpd_mlx.serving.engine import Engine, Event, Finished, Job, Progress, Request
from mtpd_mlx.serving.errors import ApiError
from mtpd_mlx.serving.fields import parse_body
from mtpd_mlx.serving.forms import anthropic, openai
from mtpd_mlx.serving.forms.common import Reply, Said, Served, no_model
from mtpd_mlx.serving.forms.responses import responses
from mtpd_mlx.serving.jobs import jobs_of
from mtpd_mlx.serving.metrics import Metrics

logger = logging.getLogger(__name__)
PAGE = Path(__file__).with_name("page.html")
MESSAGES = "/v1/messages"
QUIET = 10.0  # seconds without a token, after which a comment keeps proxies from closing a stream
Read = Callable[[Mapping[str, Any], Served], tuple[list[Request], Reply]]


class UnderWay:
    """A request that is answered: its texts, and what the engine has told of them so far."""

    def __init__(self, jobs: list[Job], reply: Reply, loop: asyncio.AbstractEventLoop):
        self.jobs, self.reply, self.left = jobs, reply, len(jobs)
        self.said = [Said() for _ in jobs]
        self._events, self._loop = asyncio.Queue[tuple[int, Event]](), loop
        for index, job in enumerate(jobs):
            job.tell = partial(self._tell, index)

    def _tell(self, index: int, what: Event) -> None:
        """In the engine's thread."""
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._events.put_nowait, (index, what))

    async def next(self) -> tuple[int, Event]:
        """Which of the texts, and what happened to it."""
        index, what = await self._events.get()
        if isinstance(what, Progress):
            self.said[index].progress.append(what)
        elif isinstance(what, Finished):
            self.said[index].finished = what
            self.left -= 1
        return index, what

    def call_off(self) -> None:
        for job in self.jobs:
            job.cancelled.set()


class Server:
    """What the routes share: engine, limits, key, metrics. One method per kind of request."""

    def __init__(self, engine: Engine, served: Served, info: dict[str, Any], api_key: str | None, most_bytes: int):
        self.engine, self.served, self.info = engine, served, info
        self.api_key, self.most_bytes = api_key, most_bytes
        self.metrics, self.began = Metrics(engine), int(time.time())

    def check_key(self, request: HttpRequest) -> None:
        """ApiError 401 unless the request has the key, as OpenAI's or Anthropic's clients send it."""
        if self.api_key is None:
            return
        given = request.headers.get("authorization", "").removeprefix("Bearer ").strip() or request.headers.get("x-api-key", "")
        if not secrets.compare_digest(given.encode(), self.api_key.encode()):
            raise ApiError(401, "the API key is missing or wrong", code="invalid_api_key")

    async def body(self, request: HttpRequest) -> dict[str, Any]:
        """What is too long is read up to the limit, so that the client gets its answer, but not kept."""
        declared = request.headers.get("content-length", "")
        keep = not (declared.isascii() and declared.isdigit() and int(declared[:20]) > self.most_bytes)
        content, size = bytearray(), 0
        async for piece in request.stream():
            size += len(piece)
            if size > self.most_bytes:
                raise ApiError(413, f"the body has more than {self.most_bytes} bytes", code="body_too_large")
            if keep:
                content += piece
        return parse_body(bytes(content))

    async def answer(self, request: HttpRequest, read: Read) -> Response:
        self.check_key(request)
        body = await self.body(request)
        wanted, reply = await asyncio.to_thread(read, body, self.served)  # long prompts take a while to encode
        under_way = UnderWay(jobs_of(wanted), reply, asyncio.get_running_loop())
        self.engine.submit(*under_way.jobs)
        path = request.url.path
        if wanted[0].stream:
            stream = self.stream(under_way, path)
            return StreamingResponse(stream, media_type="text/event-stream", headers={"cache-control": "no-cache"})
        await self.whole(request, under_way)
        self.metrics.finished(path, reply.total(under_way.said))
        return JSONResponse(reply.whole(under_way.said))

    async def whole(self, request: HttpRequest, under_way: "UnderWay") -> None:
        """Waits for all texts; a client that goes meanwhile calls the work off."""

        async def gone() -> None:
            while (await request.receive())["type"] != "http.disconnect":
                pass
            under_way.call_off()

        watch = asyncio.create_task(gone())
        try:
            while under_way.left:
                _, what = await under_way.next()
                if isinstance(what, ApiError):
                    raise what
        finally:
            under_way.call_off()
            watch.cancel()

    async def stream(self, under_way: "UnderWay", path: str) -> AsyncIterator[str]:
        """Server-sent events. Whoever stops reading calls the work off."""
        reply, ended = under_way.reply, False
        try:
            for said in reply.begin():
                yield said
            while under_way.left and not ended:
                try:
                    index, what = await asyncio.wait_for(under_way.next(), QUIET)
                except TimeoutError:
                    yield ": waiting\n\n"
                    continue
                if isinstance(what, Progress):
                    parts = reply.piece(index, what)
                elif isinstance(what, Finished):
                    parts = reply.end(index, what)
                else:
                    ended = True
                    logger.info("%s: %s", path, what.message)
                    parts = reply.failed(what)
                for said in parts:
                    yield said
            if not ended:
                ended = True
                self.metrics.finished(path, reply.total(under_way.said))
                for said in reply.close(under_way.said):
                    yield said
        finally:
            under_way.call_off()
            if not ended:
                logger.info("%s: the client has gone", path)

    # routes

    def answering(self, read: Read) -> Callable[[HttpRequest], Awaitable[Response]]:
        async def route(request: HttpRequest) -> Response:
            return await self.answer(request, read)

        return route

    async def count_tokens(self, request: HttpRequest) -> Response:
        self.check_key(request)
        body = await self.body(request)
        counted = await asyncio.to_thread(anthropic.count_tokens, body, self.served)
        return JSONResponse({"input_tokens": counted})

    async def models(self, request: HttpRequest) -> Response:
        self.check_key(request)
        return JSONResponse({"object": "list", "data": [self.card()]})

    async def model(self, request: HttpRequest) -> Response:
        self.check_key(request)
        name = request.path_params["name"]
        if name not in self.served.names:
            raise no_model(name, self.served)
        return JSONResponse(self.card())

    def card(self) -> dict[str, Any]:
        about = {"id": self.served.names[0], "object": "model", "created": self.began, "owned_by": "mtpd"}
        return about | {"mtpd": self.info}

    async def health(self, request: HttpRequest) -> Response:
        engine = self.engine
        counts = {"waiting": engine.waiting, "running": engine.running, "resting": engine.resting}
        return JSONResponse({"status": "ok", "model": self.served.names[0]} | counts | {"integrity": engine.integrity})

    async def metric(self, request: HttpRequest) -> Response:
        self.check_key(request)
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4")

    async def page(self, request: HttpRequest) -> Response:
        return HTMLResponse(PAGE.read_text(encoding="utf-8"))


class Counted:
    """Counts every answer by path and status, whichever part of the application gave it."""

    def __init__(self, app: Any, metrics: Metrics, paths: frozenset[str]):
        self.app, self.metrics, self.paths = app, metrics, paths

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def counted(message: Any) -> None:
            if message["type"] == "http.response.start":
                path = scope["path"] if scope["path"] in self.paths else "other"
                self.metrics.answered(path, message["status"])
            await send(message)

        await self.app(scope, receive, counted if scope["type"] == "http" else send)


async def on_api_error(request: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    logger.info("%s: %d, %s", request.url.path, error.status, error.message)
    headers = {"retry-after": "1"} if error.status in (429, 503) else None
    return JSONResponse(said(request, error), error.status, headers)


async def on_http_error(request: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code)
    told = ApiError(error.status_code, f"{request.method} {request.url.path}: {error.detail}", code=code)
    return JSONResponse(said(request, told), error.status_code, error.headers)


def said(request: HttpRequest, error: ApiError) -> dict[str, Any]:
    """In the form of the path's API."""
    return anthropic.error_body(error) if request.url.path.startswith(MESSAGES) else error.body()


def make_app(server: Server, origins: tuple[str, ...] = ()) -> Starlette:
    """`origins`: of pages in browsers that may ask (CORS); "*": all."""
    routes = [
        Route("/", server.page, methods=["GET"]),
        Route("/health", server.health, methods=["GET"]),
        Route("/metrics", server.metric, methods=["GET"]),
        Route("/v1/models", server.models, methods=["GET"]),
        Route("/v1/models/{name:path}", server.model, methods=["GET"]),
        Route("/v1/chat/completions", server.answering(openai.chat), methods=["POST"]),
        Route("/v1/completions", server.answering(openai.completion), methods=["POST"]),
        Route("/v1/responses", server.answering(responses), methods=["POST"]),
        Route(MESSAGES, server.answering(anthropic.messages), methods=["POST"]),
        Route(f"{MESSAGES}/count_tokens", server.count_tokens, methods=["POST"]),
    ]
    middleware = [Middleware(Counted, metrics=server.metrics, paths=frozenset(route.path for route in routes))]
    if origins:
        middleware.append(Middleware(CORSMiddleware, allow_origins=list(origins), allow_methods=["*"], allow_headers=["*"]))

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(server.engine.end)

    handlers: dict[Any, Any] = {ApiError: on_api_error, HTTPException: on_http_error}
    return Starlette(routes=routes, middleware=middleware, exception_handlers=handlers, lifespan=lifespan)
