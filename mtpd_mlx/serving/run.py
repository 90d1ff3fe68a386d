"""`serve`: from an opened model to the end of the server.
Called by `mtpd serve` and `mtpd-onnx serve`."""

import logging
import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from mtpd_mlx.options.serve import API_KEY, ServeOptions
from mtpd_mlx.serving.engine import Engine, EngineOptions, Runtime
from mtpd_mlx.serving.forms.common import Served
from mtpd_mlx.serving.trace import Trace
from mtpd_mlx.speculative.sampling import Sampling

logger = logging.getLogger(__name__)
NEEDED = ("starlette", "uvicorn", "prometheus_client")


def need_packages() -> None:
    """ValueError where what the server is built on is not installed."""
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise ValueError(f'serve: {missing[0]} is not installed: pip install -e ".[serve]"')


def serve(open_model: Callable[[], Runtime], name: str, options: ServeOptions, sampling: Sampling) -> int:
    """Until Ctrl-C or SIGTERM. `name`: of the model, as the user gave it: in the API a folder goes by its last part."""
    import uvicorn

    from mtpd_mlx.serving.app import Server, make_app

    trace = Trace(options.trace)
    prefix_bytes = int(options.prefix_cache * 1e9)
    asked = EngineOptions(options.max_waiting, options.max_batch, options.request_timeout, trace, prefix_bytes)
    engine = Engine(open_model, asked)
    runtime = engine.start()
    if not runtime.tokenizer.has_chat_template:
        logger.warning("%s: no chat template: /v1/chat/completions will be refused, /v1/completions works", name)
    short = Path(name).resolve().name if Path(name).expanduser().is_dir() else name
    names = tuple(dict.fromkeys((options.served_name or short, short, name, "default")))
    served = Served(
        names, runtime.tokenizer, runtime.capacity, sampling, options.max_tokens, runtime.vocab_size, options.max_waiting
    )
    key = options.api_key or os.environ.get(API_KEY) or None
    server = Server(engine, served, runtime.info, key, options.max_body)
    app = make_app(server, options.cors)
    if key is None and options.host not in ("127.0.0.1", "localhost", "::1"):
        logger.warning("--host %s: reachable from other machines without an API key (--api-key or %s)", options.host, API_KEY)
    where = f"[{options.host}]" if ":" in options.host else options.host
    logger.info("%s: http://%s:%d (a page to chat on), http://%s:%d/v1", names[0], where, options.port, where, options.port)
    uvicorn.run(app, host=options.host, port=options.port, log_level="warning", timeout_graceful_shutdown=5)
    trace.close()
    return 0
