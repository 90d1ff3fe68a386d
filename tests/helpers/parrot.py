"""A runtime that says one given text, whatever it is asked; and a server of it on a socket."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tiny import write_tokenizer

from helpers.bound import hashed_rows
from helpers.fakes import ScriptedModel
from helpers.serving import with_template
from mtpd_mlx.serving.engine import Engine, EngineOptions
from mtpd_mlx.serving.forms.common import Served
from mtpd_mlx.speculative.bound_rows import BoundRows
from mtpd_mlx.speculative.one_by_one import OneByOne
from mtpd_mlx.speculative.rounds import StepBackend
from mtpd_mlx.speculative.sampling import Sampling
from mtpd_mlx.text.tokenizer import Tokenizer

TEMPLATE = (
    "{% for t in tools or [] %}[{{ t.function.name }}]{% endfor %}{% for m in messages %}{{ m.role[0] }}:{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function.name }} {{ c.function.arguments.city }}</tool_call>{% endfor %}|"
    "{% endfor %}a:{# <think> #}"
)
PROMPT_END = "a:"


class Parrot:
    """Every text is `text`. `prompts`: what was asked, as text."""

    def __init__(self, folder: Path, text: str):
        write_tokenizer(folder)
        self.tokenizer = Tokenizer.from_folder(with_template(folder, TEMPLATE))
        self.capacity, self.vocab_size, self.info = 4096, 97, dict[str, Any]()
        self.text, self.prompts = [*self.tokenizer.encode(text), 0], list[str]()

    def batch(self, most: int) -> OneByOne:
        return OneByOne(self.decoder, 2)

    def bound(self, most: int) -> BoundRows:
        return hashed_rows(most)

    def decoder(self, sampling: Sampling) -> StepBackend:
        end = self.tokenizer.encode(PROMPT_END)

        def target(tokens: Any) -> int:
            known = list(tokens)
            places = (i for i in range(len(known), 1, -1) if known[i - 2 : i] == end and self._said(known[i:]))
            if (start := next(places, None)) is None:  # inside of the prompt
                return 0
            if start == len(known):
                self.prompts.append(self.tokenizer.decode(known))
            return self.text[min(len(known) - start, len(self.text) - 1)]

        return StepBackend(ScriptedModel(target, iter(lambda: None, 1), 2, self.capacity))

    def _said(self, tokens: list[int]) -> bool:
        return tokens == self.text[: len(tokens)]


@contextmanager
def parrot(folder: Path, text: str) -> Iterator[tuple[str, Parrot]]:
    """(address, runtime)."""
    import uvicorn

    from mtpd_mlx.serving.app import Server, make_app

    runtime = Parrot(folder, text)
    engine = Engine(lambda: runtime, EngineOptions(8))
    engine.start()
    served = Served(("tiny", "default"), runtime.tokenizer, runtime.capacity, Sampling(), 500)
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    app = make_app(Server(engine, served, runtime.info, None, 1 << 20))
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="critical", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{port}", runtime
    finally:
        server.should_exit = True
        thread.join(10)
