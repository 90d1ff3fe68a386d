"""Acceptance of drafts under rejection sampling, without decoding.
Called by tools/experiments/measures.py."""

import numpy as np

from mtpd_mlx.measure.acceptance import ForcedBatch, place, teacher_force
from mtpd_mlx.model.base import Base
from mtpd_mlx.model.generate import Generation
from mtpd_mlx.model.heads import MTPHeads, shift_left
from mtpd_mlx.model.runtime import mx

SAMPLED_ROWS = 8  # whose float32 logits are held at once


def sampled_tables(
    base: Base, heads: MTPHeads, texts: list[Generation], temp: float, seed: int, forced: list[ForcedBatch] | None = None
) -> list[np.ndarray]:
    """As match_tables, for texts that the base sampled at `temp`: would rejection sampling have kept a draft of head k there?

    With p of the main head and q of head k at that temperature, a draft is kept and is x with probability min(p, q)(x), and
    the text shows x with probability p(x): given x, the draft was kept with probability min(1, q(x) / p(x)).
    """
    tables: list[np.ndarray] = [np.zeros((0, heads.num_heads), dtype=bool)] * len(texts)
    if heads.draft_tokens is not None:
        raise ValueError("sampled acceptance: expected heads without a draft vocabulary")

    def chosen(states: mx.array, targets: mx.array) -> mx.array:
        """log-probability of targets [B, T] at the temperature, a few rows at a time."""
        parts = []
        for start in range(0, states.shape[0], SAMPLED_ROWS):
            rows = slice(start, start + SAMPLED_ROWS)
            logits = base.logits(states[rows]).astype(mx.float32) / temp
            picked = mx.take_along_axis(logits, targets[rows][..., None], axis=-1)[..., 0]
            parts.append(picked - mx.logsumexp(logits, axis=-1))
        return mx.concatenate(parts)

    for number, batch in enumerate(forced or teacher_force(base, texts)):
        log_p = chosen(base.norm(batch.hidden), shift_left(batch.tokens, 1))
        kept = []
        for k, state in enumerate(heads.cascade(base, batch.hidden, batch.tokens), start=1):
            ratio = mx.exp(chosen(state, shift_left(batch.tokens, k + 1)) - shift_left(log_p, k))
            key = mx.random.key((seed * 1_000_003 + number) * 1_009 + k)
            kept.append(mx.random.uniform(shape=ratio.shape, key=key) < ratio)
            mx.eval(kept)
        place(tables, np.array(mx.stack(kept, axis=-1)), batch, texts)
    return tables
