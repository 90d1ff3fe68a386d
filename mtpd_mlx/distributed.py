"""Data parallelism through mx.distributed: `mlx.launch -n 2 mtpd train ...` (ring on CPUs and Macs, NCCL on CUDA)."""

import os
from dataclasses import dataclass
from typing import Any

from mtpd_mlx.mlx_runtime import mx

BUCKET_BYTES = 32 << 20  # gradients are summed in buckets of about this size


@dataclass(frozen=True)
class World:
    """The ranks of one run. `group` is None where there is one process."""

    rank: int
    size: int
    group: Any = None

    @classmethod
    def alone(cls) -> "World":
        return cls(0, 1)

    @classmethod
    def launched(cls) -> "World":
        """The world that mlx.launch (or mpirun) started this process in."""
        if not any(name in os.environ for name in ("MLX_RANK", "MLX_HOSTFILE", "OMPI_COMM_WORLD_RANK")):
            return cls.alone()
        group = mx.distributed.init()
        return cls(group.rank(), group.size(), group) if group.size() > 1 else cls.alone()

    @property
    def leads(self) -> bool:
        """Rank 0 alone writes files and speaks."""
        return self.rank == 0

    def rows(self, count: int) -> slice:
        """This rank's rows of a batch of `count`."""
        if count % self.size:
            raise ValueError(f"--batch-size: got {count} rows for {self.size} ranks, expected a multiple of {self.size}")
        return slice(self.rank, None, self.size)

    def sum(self, tree: Any) -> Any:
        """Every array of the tree summed over all ranks, in buckets."""
        if self.size == 1:
            return tree
        from mlx.utils import tree_flatten, tree_unflatten

        if isinstance(tree, mx.array):
            return mx.distributed.all_sum(tree, group=self.group)
        flat: Any = tree_flatten(tree)
        summed: list[tuple[str, mx.array]] = []
        for bucket in _buckets(flat):
            joined = mx.concatenate([a.reshape(-1) for _, a in bucket])
            total, at = mx.distributed.all_sum(joined, group=self.group), 0
            for name, a in bucket:
                summed.append((name, total[at : at + a.size].reshape(a.shape)))
                at += a.size
        return tree_unflatten(summed)


def _buckets(flat: list[tuple[str, mx.array]]) -> list[list[tuple[str, mx.array]]]:
    """Consecutive arrays of one dtype, up to BUCKET_BYTES together (at least one)."""
    buckets: list[list[tuple[str, mx.array]]] = []
    size = 0
    for name, a in flat:
        if not buckets or buckets[-1][0][1].dtype != a.dtype or size + a.nbytes > BUCKET_BYTES:
            buckets.append([])
            size = 0
        buckets[-1].append((name, a))
        size += a.nbytes
    return buckets
