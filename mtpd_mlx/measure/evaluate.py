"""`measure`: CAR, AR and tau of a checkpoint on prompts, and how repetitive the text was.
Called by `mtpd eval`, `mtpd probe`, the demo and tools/experiments."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from mtpd_mlx.measure.acceptance import ForcedBatch, match_tables
from mtpd_mlx.model.base import Base
from mtpd_mlx.model.generate import Generation
from mtpd_mlx.model.heads import MTPHeads
from mtpd_mlx.speculative.stats import acceptance_table, distinct_n, novel_positions, walk


@dataclass(frozen=True)
class Acceptance:
    """Figures over decoding rounds. car[k-1] = share of rounds whose drafts 1..k were all accepted; tau = 1 + sum(car)."""

    car: list[float]
    ar: list[float]
    tau: float
    rounds: int

    def to_dict(self) -> dict[str, Any]:
        return {"car": self.car, "ar": self.ar, "tau": self.tau, "rounds": self.rounds}


def from_counts(counts: list[int], num_heads: int) -> Acceptance:
    """`counts`: accepted drafts of each round."""
    table = acceptance_table(counts, num_heads)
    return Acceptance(table.car, table.ar, table.tau, len(counts))


def round_starts(accepted: list[int]) -> list[int]:
    """Row of the match table at which each round began: the decoder moves on by accepted + 1."""
    starts, row = [], 0
    for count in accepted:
        starts.append(row)
        row += count + 1
    return starts


def measure(base: Base, heads: MTPHeads, texts: list[Generation], forced: list[ForcedBatch] | None = None) -> dict[str, Any]:
    """Acceptance over all rounds of `texts`, and over the rounds whose first target ends a 4-gram new to its text."""
    return summarise(texts, match_tables(base, heads, texts, forced), heads.num_heads)


def summarise(texts: list[Generation], tables: list[np.ndarray], num_heads: int) -> dict[str, Any]:
    """The figures of `measure` from the tables of matches, one [N, K] per text."""
    counts: list[int] = []
    novel_counts: list[int] = []
    for text, table in zip(texts, tables, strict=True):
        accepted = walk(table)
        novel = novel_positions(text.prompt + text.tokens, 4)
        counts += accepted
        first = len(text.prompt) + 1  # row r drafts from position len(prompt)-1+r, whose depth-1 target is two further on
        novel_counts += [a for a, r in zip(accepted, round_starts(accepted), strict=True) if novel[first + r]]
    overall, new = from_counts(counts, num_heads), from_counts(novel_counts, num_heads)
    return overall.to_dict() | {"novel": new.to_dict()}


def repetition(texts: list[Generation]) -> float:
    """Mean distinct-4-gram share of the generated tokens of each text (1.0: no 4-gram occurs twice)."""
    shares = [distinct_n(t.tokens, 4) for t in texts if len(t.tokens) >= 4]
    return float(np.mean(shares)) if shares else 1.0
