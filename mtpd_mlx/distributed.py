"""Data parallelism through mx.distributed: `mlx.launch -n 2 mtpd train ...` (ring on CPUs and Macs, NCCL on CUDA)."""

import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

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

    def from_lead(self, make: Callable[[], Any]) -> Any:
        """What `make` returns on rank 0 (something JSON can hold), on every rank; its one-line error too."""
        if self.size == 1:
            return make()
        answer: dict[str, Any] = {}
        if self.leads:
            try:
                answer = {"value": make()}
            except (ValueError, OSError) as error:
                answer = {"error": str(error)}
        text = json.dumps(answer).encode() if self.leads else b""
        length = int(self._sum_now(np.array([len(text)], np.int32))[0])
        padded = np.frombuffer(text.ljust(length, b"\0"), np.uint8).astype(np.int32)
        answer = json.loads(self._sum_now(padded).astype(np.uint8).tobytes())
        if "error" in answer:
            raise ValueError(answer["error"])
        return answer["value"]

    def _sum_now(self, values: np.ndarray) -> np.ndarray:
        return np.array(mx.distributed.all_sum(mx.array(values), group=self.group))

    def sum(self, tree: Any) -> Any:
        """Every array of the tree summed over all ranks, in buckets."""
        if self.size == 1:
            return tree
        from mlx.utils import tree_flatten, tree_map_with_path

        if isinstance(tree, mx.array):
            return mx.distributed.all_sum(tree, group=self.group)
        flat: Any = tree_flatten(tree)
        summed: dict[str, mx.array] = {}
        for bucket in _buckets(flat):
            joined = mx.concatenate([a.reshape(-1) for _, a in bucket])
            total, at = mx.distributed.all_sum(joined, group=self.group), 0
            for name, a in bucket:
                summed[name] = total[at : at + a.size].reshape(a.shape)
                at += a.size
        return tree_map_with_path(lambda name, _: summed[name], tree)


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


def stop_clearly(world: World, how_to_continue: str) -> None:
    """Makes a rank that is told to end (mlx.launch does so when another one is lost) say so and leave, even from inside a
    collective that will never finish: the message comes from a thread that the signal wakes."""
    if world.size == 1:
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.set_wakeup_fd(writer)

    def wait() -> None:
        while received := os.read(reader, 1):
            if received[0] == signal.SIGTERM:
                print(f"mtpd: rank {world.rank} was told to stop: {LOST}; {how_to_continue}", file=sys.stderr, flush=True)
                os._exit(143)

    threading.Thread(target=wait, daemon=True).start()


LOST = "another rank was lost, or the launcher ended the run"
