"""`interleave`: several ways to decode the same prompts, timed in turn, so that a warm cache or a hot machine favours none.
Called by `mtpd bench`, `tune`, `mtpd-onnx bench` and tools."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from mtpd_mlx.speculative.loop import generate
from mtpd_mlx.speculative.protocol import Backend
from mtpd_mlx.speculative.stats import DecodeStats

LONGEST_REST = 3600  # seconds


@dataclass(frozen=True)
class Run:
    """One text: its tokens, the seconds to the first one (prefill) and those of the others; of each pass of the main model
    after prefill, where passes are counted. peak_memory: bytes held at most, weights included, where they are counted."""

    tokens: list[int]
    prefill_seconds: float
    decode_seconds: float
    pass_seconds: list[float] = field(default_factory=list)
    peak_memory: int = 0

    @property
    def tokens_per_second(self) -> float:
        return (len(self.tokens) - 1) / self.decode_seconds if self.decode_seconds > 0 else 0.0


Decode = Callable[[list[int], int], Run]  # (prompt, max_tokens)


@dataclass
class Arm:
    """A way to decode, and its runs in the order of the prompts, round after round."""

    name: str
    decode: Decode
    stats: DecodeStats | None = None
    runs: list[Run] = field(default_factory=list)

    @property
    def tokens_per_second(self) -> float:
        """Median over all runs."""
        return statistics.median(run.tokens_per_second for run in self.runs)

    @property
    def prefill_seconds(self) -> float:
        return statistics.median(run.prefill_seconds for run in self.runs)

    @property
    def peak_memory(self) -> int:
        """The largest of all runs."""
        return max(run.peak_memory for run in self.runs)

    @property
    def milliseconds_per_pass(self) -> float | None:
        """Median over all passes of all runs, those that a text's end cut short included; None where none were counted."""
        seconds = [each for run in self.runs for each in run.pass_seconds]
        return 1000 * statistics.median(seconds) if seconds else None


def backend_arm(name: str, backend: Backend, plain: bool = False) -> Arm:
    """An arm whose texts run to max_tokens: no token ends them."""
    stats = DecodeStats(backend.num_draft_tokens)

    def decode(prompt: list[int], max_tokens: int) -> Run:
        backend.rewind_to(0)
        own = DecodeStats(backend.num_draft_tokens)
        tokens, passes = list[int](), list[float]()
        for chunk in generate(backend, prompt, max_tokens=max_tokens, plain=plain):
            tokens += chunk.tokens
            passes += [] if chunk.prompt_tokens else [chunk.seconds]
            own.add(chunk)
            stats.add(chunk)
        return Run(tokens, own.prompt_seconds, own.decode_seconds, passes)

    return Arm(name, decode, stats)


def interleave(
    arms: Sequence[Arm],
    prompts: Sequence[list[int]],
    max_tokens: int,
    *,
    repeats: int,
    cool_down: float = 0.0,
    see: Callable[[], None] = lambda: None,
) -> None:
    """Every arm decodes a prompt before the next prompt begins; the order of the arms turns by one each time. One run of each
    arm on the first prompt goes before and is not counted."""
    for arm in arms:
        arm.decode(prompts[0], max_tokens)
        if arm.stats is not None:
            arm.stats.__init__(arm.stats.num_draft_tokens)  # type: ignore[misc]
    turn = 0
    for _ in range(repeats):
        for prompt in prompts:
            for arm in [*arms[turn % len(arms) :], *arms[: turn % len(arms)]]:
                arm.runs.append(arm.decode(prompt, max_tokens))
                time.sleep(cool_down)
            turn += 1
            see()


def identical(a: Arm, b: Arm) -> float:
    """Share of runs with the same tokens."""
    same = [x.tokens == y.tokens for x, y in zip(a.runs, b.runs, strict=True)]
    return sum(same) / len(same)


def acceptance(arm: Arm) -> dict[str, Any]:
    assert arm.stats is not None
    return {"tau": arm.stats.tau, "car": arm.stats.car}
