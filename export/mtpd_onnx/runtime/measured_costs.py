"""`measure`, `guessed`: costs of rounds, timed when a folder is opened or taken from a table that repeats.
Called by runtime/open.py, open_device.py and the batch."""

import hashlib
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from mtpd_mlx.files.measured import StoredCosts, processor, store_costs, stored_costs
from mtpd_mlx.speculative.round_costs import IN_A_MOMENT, PLAIN, Kind, RoundCosts, by_kind, heads, lookup, plausible
from mtpd_onnx.manifest import NAME as MANIFEST
from mtpd_onnx.precision import WEIGHT_BITS
from mtpd_onnx.runtime.cuda_runtime import device_name
from mtpd_onnx.runtime.sessions import import_onnxruntime

# Of timed rounds; every kind has one, and more while there is time.
SECONDS, REPEATS = 0.6, 3
HEAD_COUNTS = (1, 2, 3, 4, 6, 8, 12, 16)
LOOKUP_COUNTS = (3, 7, 15)  # with the token before them 4, 8 and 16 rows

# In plain steps, for a model of 135M parameters on two cores or on a GPU: a second row, each row more, a head; by (integer
# weights, activations).
ON_A_GPU = (0.04, 0.01, 0.16)
GUESSES = {(False, "fp32"): (0.18, 0.1, 0.23), (True, "fp32"): (1.1, 0.2, 0.49), (True, "int8"): (0.25, 0.24, 0.34)} | {
    (integers, kind): ON_A_GPU for integers in (False, True) for kind in ("fp16", "bf16")
}


def kinds_of(num_heads: int, room: int, with_lookup: bool = True) -> list[Kind]:
    """The kinds of rounds to choose among; `room`: drafts that fit the cache."""
    counts = sorted({n for n in HEAD_COUNTS if n < num_heads} | {num_heads} if num_heads else set())
    kinds = [PLAIN, *(heads(n) for n in counts), *(lookup(n) for n in LOOKUP_COUNTS if with_lookup)]
    return [kind for kind in kinds if kind.num_drafts <= room]


def measure(kinds: Sequence[Kind], run: Callable[[Kind], None]) -> dict[Kind, float]:
    """Seconds of a round of every kind, the least of its repeats. `run` takes one round. Some rounds go before: the first ones
    touch the weights, and find memory for what they compute."""
    for kind in (PLAIN, max(kinds, key=lambda kind: kind.num_drafts), kinds[-1], PLAIN):
        run(kind)
    best = dict.fromkeys(kinds, math.inf)
    end = time.perf_counter() + SECONDS
    for repeat in range(REPEATS):
        for kind in kinds:
            if repeat and time.perf_counter() > end:
                return best
            began = time.perf_counter()
            run(kind)
            best[kind] = min(best[kind], time.perf_counter() - began)
    return best


def known_or_measured(key: str, remeasure: bool, measure: Callable[[], dict[Kind, float]]) -> RoundCosts:
    """The costs that were stored under `key` (costs_key), or else, and where `remeasure` says so, measured now and stored."""
    stored = None if remeasure else stored_costs(key)
    if stored is not None and (found := by_kind(stored.costs)):
        return RoundCosts(found, measured=True, spread=IN_A_MOMENT)
    costs = RoundCosts(measure(), measured=True)
    if plausible(costs.table()):
        store_costs(key, StoredCosts({str(kind): cost for kind, cost in costs.table().items()}))
    return costs


def costs_key(folder: Path, provider: str, num_threads: int | None, kinds: Sequence[Kind], *, sampled: bool) -> str:
    """All that the costs of rounds depend on. The manifest names the contents of every file of the folder."""
    device = device_name() if provider == "cuda" else processor()
    threads = "" if num_threads is None else f", {num_threads} threads"
    digest = hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()[:16]
    version, how = import_onnxruntime().__version__, "sampled" if sampled else "greedy"
    return f"{device}{threads}, onnxruntime {version}; folder {digest}; {how}; {', '.join(map(str, kinds))}"


def row_and_head(precision: str, activations: str) -> tuple[float, float]:
    """What every further row of a pass costs, and a head, in plain steps of one row: a guess."""
    _, further, head = GUESSES[precision in WEIGHT_BITS, activations]
    return further, head


def guessed(kinds: Sequence[Kind], precision: str, activations: str) -> dict[Kind, float]:
    """Plain steps of a round of every kind, the same on every machine."""
    second, further, head = GUESSES[precision in WEIGHT_BITS, activations]

    def cost(kind: Kind) -> float:
        rows = kind.num_drafts
        return 1 + (second + further * (rows - 1) if rows else 0.0) + (head * rows if kind.source == "heads" else 0.0)

    return {kind: cost(kind) for kind in kinds}
