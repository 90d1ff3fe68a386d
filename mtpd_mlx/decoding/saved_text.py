"""`save_text`: a text's caches, copied out of its decoder and put into another one (speculative/saved.py).
Called by the decoders, for a server's prefix cache."""

from dataclasses import dataclass
from typing import Any

from mtpd_mlx.decoding.fixed_cache import to_fixed, to_growing
from mtpd_mlx.decoding.text_state import HostState
from mtpd_mlx.model.runtime import mx

Rows = tuple[mx.array, mx.array]  # keys, values [1, kv heads, length, head_dim]


@dataclass(frozen=True)
class SavedText:
    """rows: of the base's layers; head_rows: of the heads."""

    tokens: list[int]
    rows: list[Rows]
    head_rows: list[Rows]

    @property
    def kind(self) -> str:
        return kind_of(len(self.head_rows))

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for pair in [*self.rows, *self.head_rows] for array in pair)

    def caches(self, length: int) -> tuple[list[Any], list[Any]]:
        """mlx-lm's caches of the first `length` positions: base, heads."""
        base, heads = ([to_growing(pair, length) for pair in rows] for rows in (self.rows, self.head_rows))
        return base, heads


def kind_of(num_heads: int) -> str:
    return f"mlx, {num_heads} heads"


def save_text(host: HostState) -> SavedText | None:
    """What `host`, with nothing under way and heads that have read all, has cached. None where there is nothing, and where a
    cache is not keys and values as they are (recurrent, rotating, quantised)."""
    if not host.tokens or any(type(cache).__name__ != "KVCache" for cache in [*host.caches, *host.head_caches]):
        return None
    rows, head_rows = ([_copied(cache, host.length) for cache in caches] for caches in (host.caches, host.head_caches))
    mx.eval(rows, head_rows)
    return SavedText(list(host.tokens), rows, head_rows)


def _copied(cache: Any, length: int) -> Rows:
    keys, values = to_fixed(cache, length, length)
    return mx.contiguous(keys), mx.contiguous(values)
