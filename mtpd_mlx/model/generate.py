"""`generate_greedy`, `generate_batch`: batched texts by the base alone, one token per pass.
Called by measuring, `mtpd eval` and data/own_text.py."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from mtpd_mlx.model.base import Base
from mtpd_mlx.model.finite import marked, type_name
from mtpd_mlx.model.runtime import mx
from mtpd_mlx.speculative.finite import NO_TOKEN, naming, not_finite

BATCH_SIZE = 16
Pick = Callable[[mx.array], mx.array]  # logits [B, V] -> token ids [B]


@dataclass(frozen=True)
class Generation:
    """A prompt and the base's continuation of it."""

    prompt: list[int]
    tokens: list[int]


def greedy(logits: mx.array) -> mx.array:
    """Token ids [...] of the largest of logits [..., V]; the first one among equals."""
    return mx.argmax(logits, axis=-1)


def batches_of(prompts: list[list[int]], batch_size: int) -> list[list[int]]:
    """Indices of `prompts` in batches of like lengths: a pure function of the prompts."""
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def generate_greedy(
    base: Base, prompts: list[list[int]], max_tokens: int, eos: frozenset[int], batch_size: int = BATCH_SIZE
) -> list[Generation]:
    """Greedy continuations, batched with left padding; each ends with EOS or after `max_tokens`."""
    done: dict[int, Generation] = {}
    for chunk in batches_of(prompts, batch_size):
        with naming([str(i + 1) for i in chunk]):
            texts = generate_batch(base, [prompts[i] for i in chunk], max_tokens, eos)
        done |= {i: Generation(prompts[i], tokens) for i, tokens in zip(chunk, texts, strict=True)}
    return [done[i] for i in range(len(prompts))]


def generate_batch(
    base: Base, prompts: list[list[int]], max_tokens: int, eos: frozenset[int], pick: Pick = greedy
) -> list[list[int]]:
    """The continuation of each prompt, up to its EOS (kept) or `max_tokens`. The next pass runs while the last is read.
    NotFiniteError where the logits of a text that has not ended are not finite; its `row` is that of the prompt."""
    columns: list[np.ndarray] = []
    alive = np.ones(len(prompts), dtype=bool)
    for column in _columns(base, prompts, max_tokens, pick):
        if bad := np.flatnonzero(alive & (column == NO_TOKEN)).tolist():
            raise not_finite(len(prompts[bad[0]]) + len(columns), type_name(base.dtype), bad[0])
        columns.append(column)
        alive &= ~np.isin(column, list(eos))
        if not alive.any():
            break
    rows = np.stack(columns, axis=1).tolist()
    return [row[: next((j + 1 for j, t in enumerate(row) if t in eos), len(row))] for row in rows]


def _columns(base: Base, prompts: list[list[int]], max_tokens: int, pick: Pick) -> Iterator[np.ndarray]:
    """Token ids [B] of one position after the other, marked where logits were not finite."""
    width = max(map(len, prompts))
    padding = [width - len(p) for p in prompts]
    cache = base.make_batch_cache(padding)

    def advance(tokens: mx.array) -> tuple[mx.array, mx.array]:
        hidden = base.norm(base.trunk(tokens, cache)[:, -1:])
        logits = base.logits(hidden)[:, 0]
        picked = pick(logits)
        seen = marked(picked, logits)
        mx.async_eval(picked, seen)
        return picked, seen

    current, seen = advance(mx.array([[0] * pad + p for pad, p in zip(padding, prompts, strict=True)]))
    for step in range(max_tokens):
        following = advance(current[:, None]) if step + 1 < max_tokens else (current, seen)
        yield np.array(seen)
        current, seen = following
