"""A server over a tiny checkpoint, asked without a socket."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from mtpd_mlx.options.serve import ServeOptions
from mtpd_mlx.serving.engine import Engine, EngineOptions, Runtime
from mtpd_mlx.serving.forms.common import Served
from mtpd_mlx.speculative.sampling import Sampling

TEMPLATE = "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}a:{% endif %}"


def with_template(folder: Path, template: str = TEMPLATE) -> Path:
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"chat_template": template}))
    return folder


@contextmanager
def serving(open_model: Any, *, api_key: str | None = None, origins: tuple[str, ...] = (), **options: Any) -> Iterator[Any]:
    """(client, engine): a client of an application whose engine runs."""
    from starlette.testclient import TestClient

    from mtpd_mlx.serving.app import Server, make_app

    prefix_bytes = int(options.get("prefix_cache", ServeOptions.prefix_cache) * 1e9)
    chosen = replace(ServeOptions(), **options)
    engine = Engine(
        open_model, EngineOptions(chosen.max_waiting, chosen.max_batch, chosen.request_timeout, prefix_bytes=prefix_bytes)
    )
    runtime: Runtime = engine.start()
    names = ("tiny", "default")
    served = Served(names, runtime.tokenizer, runtime.capacity, Sampling(), chosen.max_tokens, None, chosen.max_waiting)
    server = Server(engine, served, runtime.info, api_key, chosen.max_body)
    with TestClient(make_app(server, origins), raise_server_exceptions=False) as client:
        yield client, engine


def events(lines: Iterator[str]) -> list[dict[str, Any]]:
    """Of a stream, which has to end as OpenAI's do."""
    found = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    assert found[-1] == "[DONE]"
    return [json.loads(line) for line in found[:-1]]
