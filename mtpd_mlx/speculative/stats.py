"""Acceptance and repetition statistics (definitions of MTP-D, arXiv 2603.23911).

Over the N rounds in which K drafts were verified, a_r of them accepted in round r:

    CAR_k = P(drafts 1..k all accepted)                      = |{r : a_r >= k}| / N
    AR_k  = P(draft k accepted | drafts 1..k-1 accepted)     = CAR_k / CAR_{k-1},  CAR_0 = 1
    tau   = tokens per pass of the main model                = 1 + sum_k CAR_k = 1 + mean_r a_r

A round is counted by what the main head accepted, also where EOS, a stop or max_tokens then cut the text inside it:
leaving such rounds out would leave out the long ones. Plain steps and rounds of fewer than K drafts are counted apart.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mtpd_mlx.speculative.loop import Chunk


@dataclass(frozen=True)
class AcceptanceTable:
    """car[k-1] = CAR_k, ar[k-1] = AR_k, k = 1..K (equations: top of this file)."""

    car: list[float]
    ar: list[float]
    tau: float


def acceptance_table(counts: Sequence[int], num_draft_tokens: int) -> AcceptanceTable:
    """`counts` [N]: accepted drafts of each round, 0..K (else ValueError). No rounds: zeros, tau 1."""
    array = np.asarray(counts, dtype=np.int64)
    if array.size and not 0 <= array.min() <= array.max() <= num_draft_tokens:
        raise ValueError(f"counts: got {array.min()}..{array.max()}, expected 0..{num_draft_tokens}")
    car = [float((array >= k).mean()) if array.size else 0.0 for k in range(1, num_draft_tokens + 1)]
    ar = [c / p if p > 0 else 0.0 for c, p in zip(car, [1.0, *car], strict=False)]
    return AcceptanceTable(car, ar, 1.0 + sum(car))


def walk(matches: np.ndarray) -> list[int]:
    """matches bool [N, K] (every position, every depth) -> accepted counts of a decoder's rounds over these rows.

    a_r = length of the leading run of matches in row i_r;  i_0 = 0,  i_{r+1} = i_r + a_r + 1,  while i_r < N.
    """
    leading = np.cumprod(matches.astype(np.int64), axis=1).sum(axis=1)
    counts, row = [], 0
    while row < len(leading):
        counts.append(int(leading[row]))
        row += counts[-1] + 1
    return counts


def distinct_n(tokens: Sequence[int], n: int = 4) -> float:
    """Share of n-grams of the text that are distinct; 1.0 for texts shorter than n."""
    grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 1.0


def novel_positions(tokens: Sequence[int], n: int = 4) -> np.ndarray:
    """bool [len(tokens)]: the n-gram ending here did not end earlier in the text. The first n - 1 are True."""
    seen: set[tuple[int, ...]] = set()
    novel = np.ones(len(tokens), dtype=bool)
    for i in range(n - 1, len(tokens)):
        gram = tuple(tokens[i - n + 1 : i + 1])
        novel[i] = gram not in seen
        seen.add(gram)
    return novel


@dataclass
class DecodeStats:
    """Statistics of one or many generations: feed it every chunk. Times are those of the backend's calls alone.

    accepted: one count per round that verified all num_draft_tokens drafts; short_rounds: the others; plain_steps:
    ordinary steps (--plain, or a cache too full for a round); tokens: all emitted, of which prefill brought `prompts`.
    """

    num_draft_tokens: int
    accepted: list[int] = field(default_factory=list)
    short_rounds: int = 0
    plain_steps: int = 0
    tokens: int = 0
    prompts: int = 0
    prompt_tokens: int = 0
    prompt_seconds: float = 0.0
    decode_seconds: float = 0.0
    draft_seconds: float | None = 0.0
    verify_seconds: float | None = 0.0
    full: int = 0  # texts that ended because the context was full

    def add(self, chunk: Chunk) -> None:
        self.tokens += len(chunk.tokens)
        self.full += chunk.finish_reason == "context"
        if chunk.prompt_tokens:
            self.prompts += 1
            self.prompt_tokens += chunk.prompt_tokens
            self.prompt_seconds += chunk.seconds
            return
        self.decode_seconds += chunk.seconds
        if chunk.round is None:
            self.plain_steps += 1
            return
        if chunk.round.proposed == self.num_draft_tokens:
            self.accepted.append(chunk.round.accepted)
        else:
            self.short_rounds += 1
        self.draft_seconds = _plus(self.draft_seconds, chunk.round.draft_seconds)
        self.verify_seconds = _plus(self.verify_seconds, chunk.round.verify_seconds)

    @property
    def table(self) -> AcceptanceTable:
        return acceptance_table(self.accepted, self.num_draft_tokens)

    @property
    def car(self) -> list[float]:
        return self.table.car

    @property
    def ar(self) -> list[float]:
        return self.table.ar

    @property
    def tau(self) -> float:
        return self.table.tau

    @property
    def tokens_per_second(self) -> float:
        """Decoded tokens per second; the prompt and the first token, which prefill brings, are left out."""
        return _per(self.tokens - self.prompts, self.decode_seconds) or 0.0

    @property
    def tokens_per_pass(self) -> float | None:
        """Emitted tokens per pass of the main model after the prompt, plain steps and cut rounds included."""
        return _per(self.tokens - self.prompts, len(self.accepted) + self.short_rounds + self.plain_steps)

    def to_dict(self) -> dict[str, Any]:
        """For JSON: figures without a meaning yet (no round, no time) are None, except car, ar and tau: see rounds."""
        table = self.table
        return {
            "tokens": self.tokens,
            "rounds": len(self.accepted),
            "short_rounds": self.short_rounds,
            "plain_steps": self.plain_steps,
            "tokens_per_second": self.tokens_per_second,
            "tokens_per_pass": self.tokens_per_pass,
            "decode_seconds": self.decode_seconds,
            "prompt_tokens": self.prompt_tokens,
            "prompt_seconds": self.prompt_seconds,
            "prompt_tokens_per_second": _per(self.prompt_tokens, self.prompt_seconds) or 0.0,
            "num_draft_tokens": self.num_draft_tokens,
            "car": table.car,
            "ar": table.ar,
            "tau": table.tau,
            "draft_share": _share(self.draft_seconds, self.decode_seconds),
            "verify_share": _share(self.verify_seconds, self.decode_seconds),
        }


def _plus(total: float | None, seconds: float | None) -> float | None:
    """Unknown once any round did not say."""
    return None if total is None or seconds is None else total + seconds


def _per(amount: float, by: float) -> float | None:
    return amount / by if by > 0 else None


def _share(seconds: float | None, whole: float) -> float | None:
    return _per(seconds, whole) if seconds else None
