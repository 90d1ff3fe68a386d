"""`need_room`, `check_rewind`: what every backend checks before it runs anything.
Called by the backends."""

from collections.abc import Sequence
from typing import Any

from mtpd_mlx.speculative.rounds import PREFILL_CHUNK as PREFILL_CHUNK  # re-exported: backends read it here


def need_tokens(backend: Any, tokens: Sequence[int]) -> None:
    """For prefill: ValueError where there is no token, or no room for them."""
    if len(tokens) == 0:
        raise ValueError("prefill: got no tokens, expected at least one")
    need_room(backend, len(tokens))


def need_room(backend: Any, positions: int) -> None:
    """ValueError where the context has no room for so many more positions."""
    if backend.length + positions > backend.capacity:
        raise ValueError(f"context full: {backend.length} + {positions} positions, capacity {backend.capacity}")


def check_rewind(backend: Any, length: int) -> None:
    """ValueError where `length` is none that the backend has held."""
    if not 0 <= length <= backend.length:
        raise ValueError(f"rewind_to: got {length}, expected 0..{backend.length}")
