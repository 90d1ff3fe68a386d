"""Acceptance without decoding: one teacher-forced pass over the base's own greedy text gives what the decoder would accept.

Conditional on drafts 1..k-1 being accepted, the decoder feeds head k exactly the tokens that teacher forcing feeds it, so the
leading run of matches at every position is the decoder's own (tests/test_acceptance.py holds the two against each other).
"""

from dataclasses import dataclass

import numpy as np

from mtpd_mlx.base import Base
from mtpd_mlx.heads import MTPHeads, shift_left
from mtpd_mlx.mlx_runtime import mx


@dataclass(frozen=True)
class Generation:
    """A prompt and the base's greedy continuation of it."""

    prompt: list[int]
    tokens: list[int]


def generate_greedy(
    base: Base, prompts: list[list[int]], max_tokens: int, eos: frozenset[int], batch_size: int = 16
) -> list[Generation]:
    """Greedy continuations, batched with left padding; each ends with EOS or after `max_tokens`."""
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    done: dict[int, Generation] = {}
    for start in range(0, len(order), batch_size):
        chunk = order[start : start + batch_size]
        for i, tokens in zip(chunk, _greedy_batch(base, [prompts[i] for i in chunk], max_tokens, eos), strict=True):
            done[i] = Generation(prompts[i], tokens)
    return [done[i] for i in range(len(prompts))]


def _greedy_batch(base: Base, prompts: list[list[int]], max_tokens: int, eos: frozenset[int]) -> list[list[int]]:
    from mlx_lm.models.cache import BatchKVCache

    width = max(map(len, prompts))
    padding = [width - len(p) for p in prompts]
    cache = [BatchKVCache(padding) for _ in base.layers]
    tokens = mx.array([[0] * pad + p for pad, p in zip(padding, prompts, strict=True)])
    columns: list[np.ndarray] = []
    alive = np.ones(len(prompts), dtype=bool)
    for _ in range(max_tokens):
        hidden = base.norm(base.trunk(tokens, cache)[:, -1:])
        tokens = mx.argmax(base.logits(hidden), axis=-1)  # [B, 1]
        columns.append(np.array(tokens)[:, 0])
        alive &= ~np.isin(columns[-1], list(eos))
        if not alive.any():
            break
    rows = np.stack(columns, axis=1).tolist()
    return [row[: next((j + 1 for j, t in enumerate(row) if t in eos), len(row))] for row in rows]


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
        best = mx.argmax(base.logits(base.norm(hidden)), axis=-1)
        mx.eval(hidden, best)
        batches.append(ForcedBatch(chunk, tokens, hidden, best))
    return batches


def match_tables(
    base: Base, heads: MTPHeads, texts: list[Generation], forced: list[ForcedBatch] | None = None
) -> list[np.ndarray]:
    """For each text a bool table [N, K]: row r, column k-1 says that head k at position len(prompt)-1+r guesses the main
    head's own choice. Row 0 is the decoder's first round; N leaves out rows whose deepest target lies past the text."""
    tables: list[np.ndarray] = [np.zeros((0, heads.num_heads), dtype=bool)] * len(texts)
    for batch in forced or teacher_force(base, texts):
        states = heads.cascade(base, batch.hidden, batch.tokens)
        matches = [mx.argmax(base.logits(h), axis=-1) == shift_left(batch.best, k) for k, h in enumerate(states, start=1)]
        table = np.array(mx.stack(matches, axis=-1))  # [B, T, K]
        for i, matched in zip(batch.indices, table, strict=True):
            first = len(texts[i].prompt) - 1
            last = first + len(texts[i].tokens) - heads.num_heads  # row i needs its target at i + K + 1 inside the text
            tables[i] = matched[first : max(last, first)]
    return tables
