"""`measure_costs`: costs of rounds with made-up heads of this model's shape, whose guesses do not matter.
Called by `mtpd probe` and `mtpd tune`."""

import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

from mtpd_mlx.decoding.decoder import Decoder
from mtpd_mlx.decoding.fixed_buffers import Layers, kept, to_buffers
from mtpd_mlx.decoding.fixed_cache import Span, bucket
from mtpd_mlx.decoding.open import kv_options, open_decoder
from mtpd_mlx.decoding.plain import PlainDecoder
from mtpd_mlx.decoding.rewind import trim_to
from mtpd_mlx.decoding.row_products import RowProducts
from mtpd_mlx.decoding.text_state import HostState, Model
from mtpd_mlx.decoding.token_rules import Greedy
from mtpd_mlx.decoding.tuning.calibrate import timed
from mtpd_mlx.decoding.tuning.plan import Plan
from mtpd_mlx.decoding.tuning.prediction import Costs
from mtpd_mlx.model.base import Base
from mtpd_mlx.model.heads import MTPHeads, init_heads
from mtpd_mlx.model.runtime import mx
from mtpd_mlx.options.decode import DecodingConfig

WIDEST = 17  # tokens of a verify pass
DRAFTS = (1, 2, 3, 4, 6, 8, 12, 16)
STEPS, ROUNDS, REPEATS = 8, 4, 5  # per timing, per timing, timings


def repeated_heads(base: Base, count: int) -> MTPHeads:
    """`count` heads that share one set of weights: the work of a cascade without its memory."""
    heads = init_heads(base, 1, "postnorm", seed=0)
    heads.set_dtype(base.dtype)
    heads.heads = [heads.heads[0]] * count
    return heads


def measure_costs(
    base: Base,
    context: int,
    *,
    options: DecodingConfig,
    drafts: Sequence[int] = DRAFTS,
    heads: MTPHeads | None = None,
    see: Callable[[], None] = lambda: None,
) -> Costs:
    """Medians of interleaved timings behind a prompt of `context` tokens. `heads`: those to measure (default: made up).
    Every figure is that of decoding with these options: row by row with `exact`, over quantised caches with `kv_bits`."""
    prompt = [(7 * i + 3) % base.vocab_size for i in range(context)]
    cascade = repeated_heads(base, max(drafts)) if heads is None else heads
    plain = open_decoder(base, None, options.of_plain())
    chosen = open_decoder(base, cascade, options, num_draft_tokens=min(4, max(drafts))).plan
    running: list[tuple[int, Decoder | PlainDecoder]] = [(0, plain)]
    running += [(k, open_decoder(base, cascade, replace(options, plan=str(chosen)), num_draft_tokens=k)) for k in drafts]
    seconds: dict[int, list[float]] = {k: [] for k, _ in running}
    tokens = {k: backend.prefill(prompt) for k, backend in running}
    for turn in range(1 + REPEATS):
        for k, backend in running:
            count = ROUNDS if k else STEPS
            if backend.length + (1 + count) * (1 + k) > backend.capacity:
                backend.rewind_to(0)
                tokens[k] = backend.prefill(prompt)
            mean, tokens[k] = timed(backend, tokens[k], count)
            if turn:
                seconds[k].append(mean)
            see()
    medians = {k: statistics.median(times) for k, times in seconds.items()}
    return Costs(context, medians.pop(0), verify_costs(base, prompt, options, chosen), medians, str(chosen))


def verify_costs(base: Base, prompt: list[int], options: DecodingConfig, plan: Plan) -> dict[int, float]:
    """Seconds of a base pass over m = 1..17 tokens with their argmax, read by the host, over the plan's kind of cache."""
    model = Model(base, None, 0, Greedy(), options.exact, kv_options(options), windows=options.windows)
    host, length = HostState(model), len(prompt)
    host.prefill(prompt)
    caches = host.caches
    buffers = to_buffers(caches, length, bucket(length + WIDEST)) if plan.cache == "fixed" else []
    layers = Layers(base, 0)

    products = RowProducts(base.model) if plan.products == "rows" else nullcontext()

    def graph(tokens: mx.array, start: mx.array, held: list[Any]) -> tuple[mx.array, list[Any]]:
        fixed = layers.caches(held, Span(start), plan.write) if held else []
        with products:
            best = mx.argmax(model.verify_pass(tokens, fixed or caches)[2], axis=-1)
        return best, kept(fixed, mx.array(0, mx.int32))

    verify = mx.compile(graph) if plan.compiled else graph

    def run(width: int) -> None:
        nonlocal buffers
        held, buffers = buffers, []  # a second reference would make every cache update a copy
        best, buffers = verify(mx.array([prompt[-width:]]), mx.array(length, mx.int32), held)
        del held
        mx.eval(best, buffers)
        trim_to(caches, length)

    seconds: dict[int, list[float]] = {m: [] for m in range(1, WIDEST + 1)}
    for turn in range(1 + REPEATS):
        for m, times in seconds.items():
            began = time.perf_counter()
            run(m)
            if turn:
                times.append(time.perf_counter() - began)
    return {m: statistics.median(times) for m, times in seconds.items()}
