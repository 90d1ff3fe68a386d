"""`draft_chain`: the heads over a window of positions (docs/architecture.md, "A decoding round").
Called by every way of decoding."""

from collections.abc import Callable, Sequence
from typing import Any

from mtpd_mlx.model.base import Base
from mtpd_mlx.model.heads import MTPHeads
from mtpd_mlx.model.runtime import mx

Choose = Callable[[int, mx.array], mx.array]  # (depth - 1, head logits [1, V or D]) -> token ids [1]


def head_logits(base: Base, heads: MTPHeads) -> Callable[[mx.array], mx.array]:
    """States after the final norm [.., d] -> logits [.., V], or [.., D] over the draft vocabulary."""
    return base.logits if heads.draft_tokens is None else base.draft_head(heads.draft_tokens)


def draft_chain(
    base: Base,
    heads: MTPHeads,
    logits: Callable[[mx.array], mx.array],
    states: mx.array,
    tokens: mx.array,
    caches: Sequence[Any],
    choose: Choose,
) -> mx.array:
    """states [1, W, d]: the cascade's input at W positions; tokens [1, W]: x_{s+1} there; caches: one per head, at the first of
    these positions -> the drafts [K]. Nothing is evaluated."""
    drafts = []
    for k, (head, cache) in enumerate(zip(heads.heads, caches, strict=False)):
        states, normed = run_head(base, heads, head, states, tokens, cache)
        drafts.append(choose(k, logits(normed[:, -1:])[0]))
        tokens = mx.concatenate([tokens[:, 1:], drafts[-1][None].astype(tokens.dtype)], axis=1)
    return mx.concatenate(drafts)


def fill_chain(base: Base, heads: MTPHeads, states: mx.array, tokens: mx.array, caches: Sequence[Any]) -> mx.array:
    """As draft_chain where every token is known and no draft is wanted: tokens [1, W + K - 1] are x_{s+1} and those after them.
    Returns the last state: evaluating it fills all caches."""
    width = states.shape[1]
    for k, (head, cache) in enumerate(zip(heads.heads, caches, strict=False)):
        states, _ = run_head(base, heads, head, states, tokens[:, k : k + width], cache)
    return states


def run_head(
    base: Base, heads: MTPHeads, head: Any, states: mx.array, tokens: mx.array, cache: Any
) -> tuple[mx.array, mx.array]:
    """(state for the next head, state for the output head), both [1, W, d]."""
    mask = cache.make_mask(states.shape[1], return_array=False, window_size=None)
    raw = head(states, base.embed(tokens), mask, cache)
    normed = head.finish(base, raw)
    return heads.source(base, raw, normed), normed
