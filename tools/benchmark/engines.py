"""What an arm decodes with: functions that load a model and return (what it is, a decoder of (prompt, max_tokens)).

The decoder returns {"tokens", "prefill_seconds", "decode_seconds"}, and of rounds {"accepted": counts, "proposed": counts,
"passes": their number, plain steps included}.
Texts run to max_tokens: no token ends them. child.py calls them by name; peers.py has those of other projects.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from tools.benchmark.arms import Common

Decode = Callable[[list[int], int], dict[str, Any]]
Opened = tuple[dict[str, Any], Decode]


def onnx(folder: str, common: Common, plain: bool = False, drafts: int | None = None, lookup: bool = True) -> Opened:
    """drafts None: chosen round by round, where the folder can."""
    import onnxruntime
    from mtpd_onnx.manifest import read_manifest
    from mtpd_onnx.runtime.open import open_folder

    from mtpd_mlx.options.sampling import GraphSampling

    manifest = read_manifest(Path(folder))
    how: dict[str, Any] = {"provider": common.provider, "num_threads": common.num_threads, "num_draft_tokens": drafts}
    how |= {"choose": drafts is None and not plain, "lookup": lookup}
    backend: Any = open_folder(Path(folder), plain=plain, sampling=GraphSampling(**common.sampling), **how)
    about = {"capacity": backend.capacity, "provider": backend.provider, "num_draft_tokens": backend.num_draft_tokens}
    about |= {"weights": manifest.precision, "activations": manifest.activations, "onnxruntime": onnxruntime.__version__}
    return about, of_backend(backend, plain)


def mlx(
    checkpoint: str,
    common: Common,
    model: str | None,
    dtype: str,
    drafts: int | None = None,
    heads: bool = True,
    lookup: bool = True,
) -> Opened:
    """drafts None: chosen round by round, of the heads (or without them) and of prompt lookup (or without it)."""
    from mtpd_mlx.commands.loading import open_rounds
    from mtpd_mlx.options.base import RunnableOptions
    from mtpd_mlx.options.decode import DecodingConfig
    from mtpd_mlx.options.sampling import SamplingOptions

    place = RunnableOptions(checkpoint=checkpoint, model=model, dtype=dtype)
    base, made = load(place, alone=drafts == 0 or not heads)
    sampling = SamplingOptions(**common.sampling)
    decoder: Any = open_rounds(place, DecodingConfig(), base, made, drafts, lookup, sampling=sampling)
    about = about_mlx(base) | {"num_draft_tokens": drafts, "plan": str(decoder.plan)}
    return about, with_peak(of_backend(decoder, drafts == 0))


def mlx_stock(checkpoint: str, common: Common, model: str | None, dtype: str) -> Opened:
    """mlx_lm.generate's own generator, its defaults untouched; on a CPU with the BLAS that we load."""
    from mtpd_mlx.decoding.bench.arms import stock_sampling
    from mtpd_mlx.model.runtime import mx  # before mlx_lm: MLX takes the BLAS that is there first
    from mtpd_mlx.options.base import RunnableOptions
    from mtpd_mlx.options.sampling import SamplingOptions

    base, _ = load(RunnableOptions(checkpoint=checkpoint, model=model, dtype=dtype), alone=True)
    from mlx_lm.generate import generate_step

    options = stock_sampling(SamplingOptions(**common.sampling), ())

    def steps(prompt: list[int], max_tokens: int) -> Iterator[list[int]]:
        for token, *_ in generate_step(mx.array(prompt), base.model, max_tokens=max_tokens, **options):
            yield [int(token)]

    return about_mlx(base) | {"num_draft_tokens": 0}, with_peak(lambda prompt, n: timed(steps(prompt, n)))


def load(place: Any, alone: bool) -> tuple[Any, Any]:
    """(base, heads, None where it is wanted `alone`)."""
    from mtpd_mlx.commands.loading import load_model

    base, heads = load_model(place, alone)
    return base, None if alone else heads


def about_mlx(base: Any) -> dict[str, Any]:
    from importlib.metadata import version

    from mtpd_mlx.decoding.tuning.machine import device_name

    dtype = str(base.dtype).removeprefix("mlx.core.")
    versions = {"mlx": version("mlx"), "mlx_lm": version("mlx-lm")}
    return {"capacity": base.context_length, "device": device_name(), "weights": dtype, "activations": dtype} | versions


def of_backend(backend: Any, plain: bool) -> Decode:
    from mtpd_mlx.speculative.loop import generate

    def decode(prompt: list[int], max_tokens: int) -> dict[str, Any]:
        backend.rewind_to(0)
        chunks: list[Any] = []

        def pieces() -> Iterator[list[int]]:
            for chunk in generate(backend, prompt, max_tokens=max_tokens, plain=plain):
                chunks.append(chunk)
                yield chunk.tokens

        timing = timed(pieces())
        rounds = [chunk.round for chunk in chunks if chunk.round is not None]
        counts = {"accepted": [r.accepted for r in rounds], "proposed": [r.proposed for r in rounds]}
        return timing | counts | {"passes": len(chunks) - 1}

    return decode


def timed(pieces: Iterable[list[int]]) -> dict[str, Any]:
    """Wall times of a stream of tokens, of which the first piece comes from the prompt."""
    began = time.perf_counter()
    stream = iter(pieces)
    tokens = list(next(stream))
    first = time.perf_counter()
    for piece in stream:
        tokens += piece
    ended = time.perf_counter()
    return {"tokens": tokens, "prefill_seconds": first - began, "decode_seconds": ended - first}


def with_peak(decode: Decode) -> Decode:
    """With MLX's own count of a GPU's memory; work that was enqueued ahead is waited for, so that it slows no other arm."""
    from mtpd_mlx.model.runtime import mx, on_cpu

    def counted(prompt: list[int], max_tokens: int) -> dict[str, Any]:
        mx.synchronize()
        mx.reset_peak_memory()
        result = decode(prompt, max_tokens)
        result |= {} if on_cpu() else {"device_memory": mx.get_peak_memory()}
        mx.synchronize()
        return result

    return counted
