"""`time_plans`, `choose`: the fastest plan on this machine. Each candidate decodes a few rounds, in turn.
Called by decoding/open.py."""

import logging
import math
import time
from collections.abc import Callable, Sequence

from mtpd_mlx.decoding.fixed_cache import WRITES
from mtpd_mlx.decoding.row_products import PRODUCTS
from mtpd_mlx.decoding.tuning.plan import Plan
from mtpd_mlx.model.runtime import mx, on_cpu, on_cuda
from mtpd_mlx.speculative.protocol import Backend

logger = logging.getLogger(__name__)
GROWING = Plan()
WARM_UP, TURNS = 1, 5  # each of a lead-in and calls that are timed
CALLS, ENOUGH = 4, 0.25  # timed in a row, and seconds after which fewer do
PROMPT = 48  # tokens
BUDGET = 4.0  # seconds after which no further turn is begun, once every plan has been timed
MARGIN = 0.97  # another plan must be faster than mlx-lm's own caches by so much


def candidates(num_draft_tokens: int) -> tuple[Plan, ...]:
    """What is worth measuring on this device: one plan is not measured. CPUs use mlx-lm's own caches, since fixed buffers
    bring them nothing; so does plain decoding everywhere but on CUDA."""
    if on_cuda():
        products = PRODUCTS if num_draft_tokens else PRODUCTS[:1]
        return (GROWING, *(Plan("fixed", True, write, how) for write in WRITES for how in products))
    return (GROWING,) if on_cpu() or not num_draft_tokens else (GROWING, Plan("fixed"), Plan("fixed", True))


def time_plans(make: Callable[[Plan], Backend], plans: Sequence[Plan], vocab_size: int) -> dict[Plan, float]:
    """Least seconds of a round (without drafts: of a step) of each plan over its turns, interleaved: what other programs add is
    no plan's own. What fails is left out, and said; RuntimeError where that is every one."""
    running: dict[Plan, tuple[Backend, int]] = {}
    times: dict[Plan, list[float]] = {plan: [] for plan in plans}
    prompt = [(7 * i + 3) % vocab_size for i in range(PROMPT)]
    for plan in plans:
        backend = make(plan)
        running[plan] = backend, backend.prefill(prompt)
    started = time.perf_counter()
    for turn in range(WARM_UP + TURNS):
        if turn > WARM_UP and time.perf_counter() - started > BUDGET:
            break
        for plan in list(running):
            backend, token = running[plan]
            try:
                seconds, token = timed(backend, token, CALLS, ENOUGH)
            except (RuntimeError, ValueError) as error:
                logger.warning("plan %s fails here and is left out: %s", plan, str(error).splitlines()[0])
                del running[plan]
                continue
            if turn >= WARM_UP:
                times[plan].append(seconds)
            running[plan] = backend, token
    if not running:
        raise RuntimeError(f"--plan auto: none of these runs on this device: {', '.join(map(str, plans))}")
    return {plan: min(times[plan]) for plan in running}


def room(num_draft_tokens: int) -> int:
    """How many positions the measurement takes at most."""
    return PROMPT + (WARM_UP + TURNS) * (1 + CALLS) * (1 + num_draft_tokens)


def advance(backend: Backend, token: int) -> int:
    """The last token of one round (without drafts: of one step)."""
    return backend.round(token).emitted[-1] if backend.num_draft_tokens else backend.step(token)


def timed(backend: Backend, token: int, calls: int, enough: float = math.inf) -> tuple[float, int]:
    """Mean seconds of `calls` rounds (without drafts: steps) in the middle of a text, of fewer once `enough` seconds have
    passed, and the last token of the last one."""
    token = lead_in(backend, token)
    began, count, spent = time.perf_counter(), 0, 0.0
    while count < calls and spent < enough:
        token = advance(backend, token)
        count, spent = count + 1, time.perf_counter() - began
    return spent / count, token


def lead_in(backend: Backend, token: int) -> int:
    """One call that is not timed, with the device idle before it: what another backend enqueued ahead would be waited for in
    this one's time. After it the calls cost what they cost in the middle of a text."""
    mx.synchronize()
    return advance(backend, token)


def choose(times: dict[Plan, float]) -> Plan:
    """The fastest; mlx-lm's own caches unless another one is faster by more than noise."""
    best = min(times, key=lambda plan: times[plan])
    if GROWING in times and times[best] > MARGIN * times[GROWING]:
        return GROWING
    return best
