"""Options of `mtpd serve` and `mtpd-onnx serve`.
Called by these commands and serving/run.py."""

from dataclasses import dataclass
from pathlib import Path

from mtpd_mlx.options.schema import NOT_NEGATIVE, POSITIVE, Range, option, same, switch
from mtpd_mlx.options.text import GenerateOptions

API_KEY = "MTPD_API_KEY"  # environment variable


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    GROUP = "server"

    host: str = option("127.0.0.1", "address to listen on; 0.0.0.0: reachable from other machines", metavar="ADDRESS")
    port: int = option(8080, "port", takes=Range(0, 65535), metavar="N")
    api_key: str | None = option(
        None, f"key that requests must bring; better given in the environment, as {API_KEY}", metavar="KEY", unset="none"
    )
    served_name: str | None = option(
        None, "name of the model in the API (its folder's or hub id's always work, too)", metavar="NAME", unset="as given here"
    )
    max_tokens: int = same(GenerateOptions, "max_tokens", default=512)
    max_waiting: int = option(64, "requests that may wait; more are refused with status 429", takes=POSITIVE, metavar="N")
    max_batch: int = option(16, "requests that are decoded side by side", takes=POSITIVE, metavar="N")
    prefix_cache: float = option(
        1.0,
        "memory for texts that have ended and are cached beyond the last few, where the model's caches can be cut (0: none)",
        takes=Range(0),
        metavar="GB",
    )
    request_timeout: float | None = option(
        None,
        "seconds, waiting included, after which a request ends with status 504",
        takes=Range(0.1),
        metavar="SECONDS",
        unset="none",
    )
    trace: Path | None = option(
        None, "write what is prefilled and decoded when, one JSON object a line", metavar="FILE", unset="none"
    )
    max_body: int = option(16 << 20, "bytes of a request at most", takes=POSITIVE, metavar="BYTES")
    cors: tuple[str, ...] = option((), "origin of web pages that may ask (repeatable); *: all", metavar="ORIGIN", repeated=True)


@dataclass(frozen=True, kw_only=True)
class ServeDecodingOptions(ServeOptions):
    num_draft_tokens: int | None = option(
        None, "drafts per round; 0: plain decoding", takes=NOT_NEGATIVE, metavar="K", unset="as generate chooses"
    )


@dataclass(frozen=True, kw_only=True)
class DeviceServeOptions:
    """Of `mtpd-onnx serve` alone."""

    GROUP = "server"

    cuda_batches: bool = switch(
        "on CUDA, decode requests side by side, not one at a time (new: equal on CPUs, not yet run on a GPU)"
    )
