"""`Greedy` and the interface `Rule`: from logits to tokens and acceptance (sampled: sampler.py).
Called by every way of decoding.

Everything is lazy: positions may be numbers or arrays, and nothing is read.
"""

from typing import Protocol

from mtpd_mlx.model.runtime import mx

Position = int | mx.array


class Rule(Protocol):
    """context: how many tokens before a position the rule looks at (0: none). keeps_drafts: it needs what each draft was drawn
    from, [V], until the draft is verified. `table`: random numbers by position of the text (None: not needed)."""

    context: int
    keeps_drafts: bool

    def new_table(self) -> mx.array | None:
        """The random numbers of one text."""
        ...

    def first(self, logits: mx.array, position: Position, context: mx.array | None, table: mx.array | None) -> mx.array:
        """logits [1, V] -> the token [1] at `position`; context [1, N]: the tokens before it."""
        ...

    def verify(
        self,
        logits: mx.array,
        drafts: mx.array,
        position: Position,
        contexts: mx.array | None,
        table: mx.array | None,
        kept: mx.array | None,
    ) -> tuple[mx.array, mx.array]:
        """logits [m+1, V] after x_P, d_1..d_m; position P+1; kept [m, V] -> (tokens [m+1], accepted count []): the first
        count + 1 tokens are the text."""
        ...

    def draft(
        self, logits: mx.array, position: Position, context: mx.array | None, table: mx.array | None
    ) -> tuple[mx.array, mx.array | None]:
        """A head's logits [1, V or D] -> (draft [1], what is kept of it [1, V])."""
        ...


class Greedy:
    """The most probable token, always."""

    context = 0
    keeps_drafts = False

    def __init__(self, draft_tokens: mx.array | None = None):
        self._ids = draft_tokens

    def new_table(self) -> mx.array | None:
        return None

    def first(self, logits: mx.array, position: Position, context: mx.array | None, table: mx.array | None) -> mx.array:
        return mx.argmax(logits, axis=-1)

    def verify(
        self,
        logits: mx.array,
        drafts: mx.array,
        position: Position,
        contexts: mx.array | None,
        table: mx.array | None,
        kept: mx.array | None,
    ) -> tuple[mx.array, mx.array]:
        best = mx.argmax(logits, axis=-1)
        return best, leading(best[:-1] == drafts)

    def draft(
        self, logits: mx.array, position: Position, context: mx.array | None, table: mx.array | None
    ) -> tuple[mx.array, mx.array | None]:
        best = mx.argmax(logits, axis=-1)
        if self._ids is None or logits.shape[-1] != self._ids.size:  # over the whole vocabulary
            return best, None
        return self._ids[best].astype(mx.uint32), None


def leading(matches: mx.array) -> mx.array:
    """bool [m] -> length of the leading run of True, int32 []."""
    if matches.size == 0:
        return mx.array(0, mx.int32)
    return mx.where(matches, matches.size, mx.arange(matches.size)).min().astype(mx.int32)


def contexts_of(recent: mx.array, tokens: mx.array, size: int) -> mx.array | None:
    """recent [N]: the tokens before `tokens` [m] -> [m, N]: the last N tokens up to each of them. None where N is 0."""
    if size == 0:
        return None
    places = mx.arange(1, tokens.size + 1)[:, None] + mx.arange(size)[None]
    return mx.concatenate([recent, tokens.astype(recent.dtype)])[places]


def rows_from(x: mx.array, start: Position, count: int) -> mx.array:
    """x[start : start + count] along the first axis, for a start that may be an array."""
    if isinstance(start, int):
        return x[start : start + count]
    return mx.slice(x, start[None], (0,), (count, *x.shape[1:]))


def spread(logits: mx.array, ids: mx.array, vocab_size: int) -> mx.array:
    """logits [n, D] of tokens `ids` [D] -> [n, V], hardly probable elsewhere."""
    whole = mx.full((logits.shape[0], vocab_size), -1e30, mx.float32)
    return mx.put_along_axis(whole, mx.broadcast_to(ids[None], logits.shape), logits.astype(mx.float32), axis=1)


def one_hot(tokens: mx.array, size: int) -> mx.array:
    """float32 [m, size]: what drafts that are certain were drawn from."""
    return (tokens.astype(mx.int32)[:, None] == mx.arange(size)[None]).astype(mx.float32)
