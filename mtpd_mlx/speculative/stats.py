"""`AcceptanceTable`, `DecodeStats`: statistics of acceptance and repetition (definitions of MTP-D, arXiv 2603.23911).
Called by everything that reports CAR, AR or tau.

Over the N rounds in which K drafts were verified, a_r of them accepted in round r:

    CAR_k = P(drafts 1..k all accepted)                      = |{r : a_r >= k}| / N
    AR_k  = P(draft k accepted | drafts 1..k-1 accepted)     = CAR_k / CAR_{k-1},  CAR_0 = 1
    tau   = tokens per pass of the main model                = 1 + sum_k CAR_k = 1 + mean_r a_r

A round is counted by what the main head accepted, also where EOS, a stop or max_tokens then cut the text inside it:
leaving such rounds out would leave out the long ones. Where the number of drafts is chosen round by round, CAR_k is the
product of AR_1..AR_k, each over the rounds that verified k drafts or more of the heads, and N counts all rounds that verified
any. Plain steps and rounds of lookup's drafts are counted apart.
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


def acceptance_table(counts: Sequence[int], num_draft_tokens: int, proposed: Sequence[int] | None = None) -> AcceptanceTable:
    """`counts` [N]: accepted drafts of each round, 0..K (else ValueError); `proposed` [N]: drafts that it verified (default: K
    each). No rounds: zeros, tau 1."""
    array = np.asarray(counts, dtype=np.int64)
    if array.size and not 0 <= array.min() <= array.max() <= num_draft_tokens:
        raise ValueError(f"counts: got {array.min()}..{array.max()}, expected 0..{num_draft_tokens}")
    verified = np.full(array.shape, num_draft_tokens) if proposed is None else np.asarray(proposed, dtype=np.int64)
    tau = 1.0 + float(array.mean() if array.size else 0.0)
    car, ar = list[float](), list[float]()
    for k in range(1, num_draft_tokens + 1):
        tried = (verified >= k) & (array >= k - 1)
        ar.append(float((array[tried] >= k).mean()) if tried.any() else 0.0)
        whole = verified.size and verified.min() >= k  # every round counts: the share itself, not rounded by a product
        car.append(float((array >= k).mean()) if whole else ar[-1] * (car[-1] if car else 1.0))
    return AcceptanceTable(car, ar, tau)


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

    accepted, proposed: one count each per round that verified drafts of the heads; short_rounds: rounds that could verify
    none; plain_steps: ordinary steps (--plain, a cache too full for a round, or chosen); chosen: [rounds, tokens that they
    emitted] by what they verified, e.g. {"plain": [2, 2], "heads 4": [3, 8], "lookup 8": [1, 9]}; tokens: all emitted, of
    which prefill brought `prompts`.
    """

    num_draft_tokens: int
    accepted: list[int] = field(default_factory=list)
    proposed: list[int] = field(default_factory=list)
    chosen: dict[str, list[int]] = field(default_factory=dict)
    short_rounds: int = 0
    plain_steps: int = 0
    tokens: int = 0
    prompts: int = 0
    prompt_tokens: int = 0
    prompt_seconds: float = 0.0
    decode_seconds: float = 0.0
    draft_seconds: float | None = 0.0
    verify_seconds: float | None = 0.0

    def add(self, chunk: Chunk) -> None:
        self.tokens += len(chunk.tokens)
        if chunk.prompt_tokens:
            self.prompts += 1
            self.prompt_tokens += chunk.prompt_tokens
            self.prompt_seconds += chunk.seconds
            return
        self.decode_seconds += chunk.seconds
        self._count(chunk)
        if chunk.round is None:
            self.plain_steps += 1
            return
        if chunk.round.source == "plain":
            self.plain_steps += 1
        elif chunk.round.proposed == 0:
            self.short_rounds += 1
        elif chunk.round.source == "heads":
            self.accepted.append(chunk.round.accepted)
            self.proposed.append(chunk.round.proposed)
        self.draft_seconds = _plus(self.draft_seconds, chunk.round.draft_seconds)
        self.verify_seconds = _plus(self.verify_seconds, chunk.round.verify_seconds)

    def _count(self, chunk: Chunk) -> None:
        drafts = 0 if chunk.round is None else chunk.round.proposed
        name = f"{chunk.round.source} {drafts}" if chunk.round is not None and drafts else "plain"
        counted = self.chosen.setdefault(name, [0, 0])
        counted[0] += 1
        counted[1] += len(chunk.tokens)

    @property
    def table(self) -> AcceptanceTable:
        return acceptance_table(self.accepted, self.num_draft_tokens, self.proposed)

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
        return _per(self.tokens - self.prompts, self.passes)

    @property
    def passes(self) -> int:
        """Of the main model, after the prompt."""
        lookups = sum(rounds for name, (rounds, _) in self.chosen.items() if name.startswith("lookup"))
        return len(self.accepted) + lookups + self.short_rounds + self.plain_steps

    def to_dict(self) -> dict[str, Any]:
        """For JSON: figures without a meaning yet (no round, no time) are None, except car, ar and tau: see rounds."""
        table = self.table
        return {
            "tokens": self.tokens,
            "rounds": len(self.accepted),
            "short_rounds": self.short_rounds,
            "plain_steps": self.plain_steps,
            "chosen": {name: {"rounds": r, "tokens": t} for name, (r, t) in sorted(self.chosen.items())},
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


def merged(all: Sequence[DecodeStats]) -> DecodeStats:
    """Of several texts (at least one)."""
    out = DecodeStats(max(one.num_draft_tokens for one in all))
    for one in all:
        out.accepted += one.accepted
        out.proposed += one.proposed
        for name, counts in one.chosen.items():
            known = out.chosen.get(name, [0, 0])
            out.chosen[name] = [a + b for a, b in zip(known, counts, strict=True)]
        for name in ("short_rounds", "plain_steps", "tokens", "prompts", "prompt_tokens", "prompt_seconds", "decode_seconds"):
            setattr(out, name, getattr(out, name) + getattr(one, name))
        out.draft_seconds = _plus(out.draft_seconds, one.draft_seconds)
        out.verify_seconds = _plus(out.verify_seconds, one.verify_seconds)
    return out


def _plus(total: float | None, seconds: float | None) -> float | None:
    """Unknown once any round did not say."""
    return None if total is None or seconds is None else total + seconds


def _per(amount: float, by: float) -> float | None:
    return amount / by if by > 0 else None


def _share(seconds: float | None, whole: float) -> float | None:
    return _per(seconds, whole) if seconds else None
