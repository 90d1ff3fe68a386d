"""`MTPDraftCache`: the prompt cache of our draft model in stock mlx_lm (tokens, the heads' KV caches, last states).
Called by decoding/mlx_lm_draft.py; mlx_lm.models.cache trims, saves and loads it like any other."""

from collections.abc import Sequence
from typing import Any

from mtpd_mlx.model.runtime import mx

Part = tuple[mx.array, mx.array, int]  # keys, values, offset of one head


class MTPDraftCache:
    """tokens [offset]: what the draft model was called with. rows [n, d]: hidden states of positions start.. (where rounds
    begin). depth, states: where in a round of drafts we are."""

    def __init__(self, heads: Sequence[Any]):
        self.heads = list(heads)
        self.tokens = mx.zeros((0,), mx.uint32)
        self.rows = mx.zeros((0, 1))
        self.start = 0
        self.depth = 0
        self.states: mx.array | None = None
        self.calls = self.lost = 0  # calls of the main model seen, and rounds since without its states

    @property
    def offset(self) -> int:
        return self.tokens.size

    def add(self, tokens: mx.array) -> None:
        self.tokens = mx.concatenate([self.tokens, tokens.astype(mx.uint32)])

    def joined(self, rows: mx.array, first: int) -> tuple[mx.array, int]:
        """Our rows before position `first`, then `rows`, where they touch: (rows, position of the first one)."""
        kept = first - self.start
        if not 0 < kept <= self.rows.shape[0]:
            return rows, first
        return mx.concatenate([self.rows[:kept], rows]), self.start

    def take(self, rows: mx.array, first: int, start: int) -> None:
        """Rows of positions first.. are cut to begin at `start`."""
        self.rows, self.start = rows[start - first :], start

    def cut_heads(self, length: int) -> None:
        for head in self.heads:
            head.trim(max(0, head.offset - length))

    def is_trimmable(self) -> bool:
        return True

    def trim(self, n: int) -> int:
        n = min(self.offset, n)
        self.tokens, self.depth = self.tokens[: self.offset - n], 0
        return n

    def empty(self) -> bool:
        return self.offset == 0

    def size(self) -> int:
        return self.offset

    @property
    def nbytes(self) -> int:
        return self.tokens.nbytes + self.rows.nbytes + sum(0 if h.keys is None else h.nbytes for h in self.heads)

    @property
    def state(self) -> list[Any]:
        return [self.tokens, self.rows, self.start, [_part(head) for head in self.heads]]

    @state.setter
    def state(self, value: Sequence[Any]) -> None:
        self.tokens, self.rows, self.start, parts = value
        self.tokens = self.tokens.astype(mx.uint32)
        self.depth, self.states = 0, None
        for head, part in zip(self.heads, parts, strict=True):
            head.keys, head.values, head.offset = part

    @classmethod
    def from_state(cls, state: Sequence[Any]) -> "MTPDraftCache":
        from mlx_lm.models.cache import KVCache

        cache = cls([KVCache() for _ in state[3]])
        cache.state = state
        return cache


def _part(head: Any) -> Sequence[Any]:
    return [head.keys, head.values, head.offset]


def register() -> None:
    """Makes mlx_lm.models.cache.load_prompt_cache find the class; called when a draft model is made.

    Patches the module mlx_lm.models.cache, in whose globals a file's class names are looked up. Broken by any other lookup.
    """
    import mlx_lm.models.cache as module

    module.MTPDraftCache = MTPDraftCache  # type: ignore[attr-defined]
