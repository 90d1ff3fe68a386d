"""`teacher_force`: acceptance without decoding, by one teacher-forced pass over the base's own greedy text.
Called by measure/evaluate.py, the demo and tools/experiments.

Conditional on drafts 1..k-1 being accepted, the decoder feeds head k exactly the tokens that teacher forcing feeds it, so the
leading run of matches at every position is the decoder's own (tests/measure/test_acceptance.py compares the two).
"""

from dataclasses import dataclass

import numpy as np

from mtpd_mlx.model.base import Base
from mtpd_mlx.model.finite import finite_rows, type_name
from mtpd_mlx.model.generate import Generation
from mtpd_mlx.model.heads import MTPHeads, shift_left
from mtpd_mlx.model.runtime import mx
from mtpd_mlx.speculative.finite import naming, not_finite


@dataclass(frozen=True)
class ForcedBatch:
    """Some texts after one pass of the base: which ones, tokens [B, T], hidden_prenorm [B, T, d], its own choices [B, T]."""

    indices: list[int]
    tokens: mx.array
    hidden: mx.array
    best: mx.array


def teacher_force(base: Base, texts: list[Generation], batch_size: int = 8) -> list[ForcedBatch]:
    """The base's part of the measurement, done once for any number of heads to be compared."""
    order = sorted(range(len(texts)), key=lambda i: len(texts[i].prompt) + len(texts[i].tokens))
    batches = []
    for start in range(0, len(order), batch_size):
        chunk = order[start : start + batch_size]
        rows = [texts[i].prompt + texts[i].tokens for i in chunk]
        width = max(map(len, rows))
        tokens = mx.array([row + [0] * (width - len(row)) for row in rows])  # right padding: causal, so harmless
        hidden = base.trunk(tokens)
        logits = base.logits(base.norm(hidden))
        best, finite = mx.argmax(logits, axis=-1), finite_rows(logits)
        mx.eval(hidden, best, finite)
        _check(np.array(finite), chunk, rows, type_name(base.dtype))
        batches.append(ForcedBatch(chunk, tokens, hidden, best))
    return batches


def _check(finite: np.ndarray, chunk: list[int], rows: list[list[int]], computed_in: str) -> None:
    """finite bool [B, T]; NotFiniteError names the first of the texts `chunk` that has a position without."""
    for i, row, good in zip(chunk, rows, finite, strict=True):
        if not good[: len(row)].all():
            with naming({i: str(i + 1)}):
                raise not_finite(int(np.argmin(good[: len(row)])) + 1, computed_in, i)


def match_tables(
    base: Base, heads: MTPHeads, texts: list[Generation], forced: list[ForcedBatch] | None = None
) -> list[np.ndarray]:
    """For each text a bool table [N, K]: row r, column k-1 says that head k at position len(prompt)-1+r guesses the main
    head's own choice. Row 0 is the decoder's first round; N leaves out rows whose deepest target lies past the text."""
    tables: list[np.ndarray] = [np.zeros((0, heads.num_heads), dtype=bool)] * len(texts)
    guess = heads.guesser(base)
    for batch in forced or teacher_force(base, texts):
        states = heads.cascade(base, batch.hidden, batch.tokens)
        matches = [guess(h) == shift_left(batch.best, k) for k, h in enumerate(states, start=1)]
        place(tables, np.array(mx.stack(matches, axis=-1)), batch, texts)
    return tables


def place(tables: list[np.ndarray], table: np.ndarray, batch: ForcedBatch, texts: list[Generation]) -> None:
    """Cuts the rows of each text out of a batch's [B, T, K]."""
    num_heads = table.shape[-1]
    for i, matched in zip(batch.indices, table, strict=True):
        first = len(texts[i].prompt) - 1
        last = first + len(texts[i].tokens) - num_heads  # row i needs its target at i + K + 1 inside the text
        tables[i] = matched[first : max(last, first)]
