"""`our_arm`, `stock_arm`: the ways to decode that `mtpd bench` compares, all timed alike by wall clock.
Called by `mtpd bench`, `mtpd tune`, the demo and tools/benchmark."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from mtpd_mlx.model.base import Base
from mtpd_mlx.model.runtime import mx
from mtpd_mlx.speculative.bench import Arm, Decode, Run
from mtpd_mlx.speculative.loop import generate
from mtpd_mlx.speculative.protocol import Backend
from mtpd_mlx.speculative.sampling import Sampling
from mtpd_mlx.speculative.stats import DecodeStats

Stream = Callable[[list[int], int], Iterator[list[int]]]  # (prompt, max_tokens) -> tokens, the first ones from prefill


def timed(stream: Stream) -> Decode:
    """The texts run to max_tokens: no token ends them."""

    def decode(prompt: list[int], max_tokens: int) -> Run:
        mx.synchronize()
        mx.reset_peak_memory()
        began = time.perf_counter()
        pieces = stream(prompt, max_tokens)
        tokens = list(next(pieces))
        first = time.perf_counter()
        for piece in pieces:
            tokens += piece
        ended = time.perf_counter()
        peak = mx.get_peak_memory()
        mx.synchronize()  # work enqueued ahead of the last token must not slow the next arm
        return Run(tokens, first - began, ended - first, peak_memory=peak)

    return decode


def our_arm(name: str, backend: Backend, plain: bool = False) -> Arm:
    stats = DecodeStats(backend.num_draft_tokens)

    def stream(prompt: list[int], max_tokens: int) -> Iterator[list[int]]:
        backend.rewind_to(0)
        for chunk in generate(backend, prompt, max_tokens=max_tokens, plain=plain):
            stats.add(chunk)
            yield chunk.tokens

    return Arm(name, timed(stream), stats)


def stock_arm(base: Base, sampling: Sampling, special: Sequence[int] = (), draft: Any = None, num_draft_tokens: int = 2) -> Arm:
    """mlx_lm.generate's own generator over the same weights; `draft`: with this draft model."""

    def stream(prompt: list[int], max_tokens: int) -> Iterator[list[int]]:
        from mlx_lm.generate import generate_step, speculative_generate_step

        options = {"max_tokens": max_tokens, **stock_sampling(sampling, special)}
        if draft is None:
            steps: Any = generate_step(mx.array(prompt), base.model, **options)
        else:
            options["num_draft_tokens"] = num_draft_tokens
            steps = speculative_generate_step(mx.array(prompt), base.model, draft, **options)
        for token, *_ in steps:
            yield [int(token)]

    return Arm("stock" if draft is None else "stock speculative", timed(stream))


def stock_sampling(options: Sampling, special: Sequence[int]) -> dict[str, Any]:
    """The arguments with which mlx_lm samples likewise."""
    from mlx_lm.sample_utils import make_logits_processors, make_sampler

    found: dict[str, Any] = {}
    if options.temp > 0:
        xtc: dict[str, Any] = {"xtc_probability": options.xtc_probability, "xtc_threshold": options.xtc_threshold}
        cuts: dict[str, Any] = {"top_p": options.top_p, "min_p": options.min_p, "top_k": options.top_k}
        found["sampler"] = make_sampler(options.temp, **cuts, **xtc, xtc_special_tokens=list(special))
    if options.repetition_penalty != 1:
        penalty = (options.repetition_penalty, options.repetition_context_size)
        found["logits_processors"] = make_logits_processors(None, *penalty)
    return found
