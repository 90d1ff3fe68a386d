"""Acceptance and repetition statistics (definitions of MTP-D, arXiv 2603.23911).

Over rounds in which K drafts were verified:  CAR_k = share of rounds whose drafts 1..k were all accepted,
AR_k = CAR_k / CAR_{k-1} (CAR_0 = 1),  tau = 1 + sum_k CAR_k  tokens per round.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mtpd_mlx.speculative.loop import Chunk


@dataclass(frozen=True)
class AcceptanceTable:
    car: list[float]
    ar: list[float]
    tau: float


def acceptance_table(counts: Sequence[int], num_draft_tokens: int) -> AcceptanceTable:
    """`counts`: accepted drafts of each round, 0..K. Zero rounds give zeros and tau 1."""
    array = np.asarray(counts, dtype=np.int64)
    car = [float((array >= k).mean()) if array.size else 0.0 for k in range(1, num_draft_tokens + 1)]
    ar = [c / p if p > 0 else 0.0 for c, p in zip(car, [1.0, *car], strict=False)]
    return AcceptanceTable(car, ar, 1.0 + sum(car))


def walk(matches: np.ndarray) -> list[int]:
    """matches bool [N, K] (every position, every depth) -> accepted counts of the rounds a decoder makes: it starts at row 0
    and moves on by accepted + 1 rows."""
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
    """bool [len(tokens)]: the n-gram ending at the position has not occurred earlier in the text."""
    seen: set[tuple[int, ...]] = set()
    novel = np.ones(len(tokens), dtype=bool)
    for i in range(n - 1, len(tokens)):
        gram = tuple(tokens[i - n + 1 : i + 1])
        novel[i] = gram not in seen
        seen.add(gram)
    return novel


@dataclass
class DecodeStats:
    """Statistics of one or many generations; feed it every chunk. A round that a stop or max_tokens cut short counts with
    what the main head accepted; plain steps (prefill's token, a nearly full cache) are counted apart."""

    num_draft_tokens: int
    accepted: list[int] = field(default_factory=list)
    tokens: int = 0
    plain_steps: int = 0
    prompt_tokens: int = 0
    prompt_seconds: float = 0.0
    decode_seconds: float = 0.0
    draft_seconds: float = 0.0
    verify_seconds: float = 0.0
    _mark: float = field(default=0.0, repr=False)
    _first: bool = field(default=True, repr=False)

    def begin(self, prompt_tokens: int) -> None:
        """Call before each generation: starts the prompt clock."""
        self.prompt_tokens += prompt_tokens
        self._mark, self._first = time.perf_counter(), True

    def add(self, chunk: Chunk) -> None:
        now = time.perf_counter()
        if self._first:
            self.prompt_seconds += now - self._mark
        else:
            self.decode_seconds += now - self._mark
            self.tokens += len(chunk.tokens)
            if chunk.round is None:
                self.plain_steps += 1
            else:
                self.accepted.append(chunk.round.accepted)
                self.draft_seconds += chunk.round.draft_seconds or 0.0
                self.verify_seconds += chunk.round.verify_seconds or 0.0
        self._mark, self._first = now, False

    @property
    def table(self) -> AcceptanceTable:
        return acceptance_table(self.accepted, self.num_draft_tokens)

    @property
    def tokens_per_second(self) -> float:
        """Decoded tokens per second, the prompt and its first token apart."""
        return self.tokens / self.decode_seconds if self.decode_seconds > 0 else 0.0

    def to_dict(self) -> dict[str, Any]:
        table, timed = self.table, self.draft_seconds + self.verify_seconds
        return {
            "tokens": self.tokens,
            "rounds": len(self.accepted),
            "plain_steps": self.plain_steps,
            "tokens_per_second": self.tokens_per_second,
            "prompt_tokens": self.prompt_tokens,
            "prompt_tokens_per_second": self.prompt_tokens / self.prompt_seconds if self.prompt_seconds > 0 else 0.0,
            "car": table.car,
            "ar": table.ar,
            "tau": table.tau,
            "draft_share": self.draft_seconds / timed if timed > 0 else None,
        }
