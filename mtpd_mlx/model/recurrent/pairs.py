"""`PairedBlock`: MTP heads of families whose blocks hold one branch each (Nemotron-H), as attention and MLP blocks.
Called by model/base.py, model/blocks.py and decoding."""

from typing import Any

from mtpd_mlx.model.runtime import mx, nn


class PairedBlock(nn.Module):
    """Two blocks of a family as one decoder block."""

    def __init__(self, attention: nn.Module, mlp: nn.Module):
        super().__init__()
        self.attention, self.mlp = attention, mlp

    def __call__(self, x: mx.array, mask: Any = None, cache: Any = None) -> mx.array:
        """x [B, T, d] -> [B, T, d]."""
        return self.mlp(self.attention(x, mask=mask, cache=cache))


class Stateless:
    """Stands for the cache of a block that looks at one position at a time."""

    offset = 0
    state: tuple[()] = ()
    nbytes = 0

    def make_mask(self, N: int) -> None:
        return None

    def is_trimmable(self) -> bool:
        return True

    def trim(self, n: int) -> int:
        return n

    def filter(self, rows: Any) -> None:
        return None

    def extend(self, other: Any) -> None:
        return None
