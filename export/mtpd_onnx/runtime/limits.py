"""What every backend checks before it runs anything."""

from typing import Any

from mtpd_mlx.speculative.rounds import PREFILL_CHUNK as PREFILL_CHUNK  # re-exported: backends read it here


def need_room(backend: Any, positions: int) -> None:
    if backend.length + positions > backend.capacity:
        raise ValueError(f"context full: {backend.length} + {positions} positions, capacity {backend.capacity}")


def check_rewind(backend: Any, length: int) -> None:
    if not 0 <= length <= backend.length:
        raise ValueError(f"rewind_to: got {length}, expected 0..{backend.length}")
