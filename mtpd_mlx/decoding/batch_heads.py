"""`draft_together`: the heads' drafts behind several texts at once, each window as long as its heads lag.
Called by batch_rounds.py, inside RowsAttention."""

from collections.abc import Callable, Sequence

from mtpd_mlx.decoding.draft_chain import run_head
from mtpd_mlx.decoding.lagging_heads import LaggingHeads
from mtpd_mlx.decoding.rewind import trim_to
from mtpd_mlx.decoding.rows_cache import rows_caches
from mtpd_mlx.decoding.stacked_rows import Stacks
from mtpd_mlx.model.base import Base
from mtpd_mlx.model.heads import MTPHeads
from mtpd_mlx.model.runtime import mx

PADDING = 8  # positions that windows are padded by at most: a text whose heads lag more catches up by itself first

Choose = Callable[[int, mx.array], mx.array]  # (depth - 1, head logits [B, V or D]) -> token ids [B]


def draft_together(
    base: Base,
    heads: MTPHeads,
    logits: Callable[[mx.array], mx.array],
    lagging: Sequence[LaggingHeads],
    texts: Sequence[Sequence[int]],
    following: Sequence[int],
    count: int,
    choose: Choose,
    stacks: Stacks | None = None,
) -> tuple[mx.array, bool]:
    """Behind every text, which `following` goes on: the drafts [B, count] of the first heads; whether a text had to catch up
    by itself before. Nothing else is evaluated. Caches lie in `stacks` where they are given."""
    late = [i for i, lag in enumerate(lagging) if lag.lag(count) > count + 1 + PADDING]
    if late and stacks is not None:
        stacks.give_back()
    for i in late:
        lagging[i].catch_up(count, texts[i])
    windows = [lag.begin(count, text) for lag, text in zip(lagging, texts, strict=True)]
    widths = [rows.shape[0] for rows, _ in windows]
    width = max(widths)
    states = mx.stack([mx.pad(rows, [(0, width - rows.shape[0]), (0, 0)]) for rows, _ in windows])  # [B, W, d]
    known = [[*own, token, *[0] * (width - len(own) - 1)] for (_, own), token in zip(windows, following, strict=True)]
    tokens = mx.array(known, mx.uint32)  # [B, W]
    ends = mx.array(widths)[:, None] - 1  # the last position of each window
    last = mx.arange(width)[None] == ends
    caches, drafts = [lag.caches for lag in lagging], []
    for k in range(count):
        own = [[each[k]] for each in caches]
        cache = (rows_caches(own) if stacks is None else stacks.heads[k].caches(own, width))[0]
        states, normed = run_head(base, heads, heads.heads[k], states, tokens, cache)
        row = mx.take_along_axis(normed, mx.broadcast_to(ends[..., None], (len(windows), 1, normed.shape[-1])), axis=1)
        drafts.append(choose(k, logits(row)[:, 0]))
        shifted = mx.concatenate([tokens[:, 1:], tokens[:, :1]], axis=1)
        tokens = mx.where(last, drafts[-1][:, None].astype(mx.uint32), shifted)
    for lag, text in zip(lagging, texts, strict=True):
        trim_to(lag.caches[:count], len(text))
        lag.drafted(count)
    return mx.stack(drafts, axis=1), bool(late)
