"""`World`: data parallelism through mx.distributed (ring on CPUs and Macs, NCCL on CUDA).
Called by train/, data/own_text.py and `mtpd distill-data`."""

import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mtpd_mlx.files.lock import locked
from mtpd_mlx.model.runtime import bound_queue, mx

BUCKET_BYTES = 32 << 20  # gradients are summed in buckets of about this size


@dataclass(frozen=True)
class World:
    """The ranks of one run. `group` is None where there is one process."""

    rank: int
    size: int
    group: Any = None
    bucket_bytes: int = BUCKET_BYTES

    @classmethod
    def alone(cls) -> "World":
        return cls(0, 1)

    @classmethod
    def launched(cls) -> "World":
        """The world that mlx.launch (or mpirun) started this process in."""
        if not any(name in os.environ for name in ("MLX_RANK", "MLX_HOSTFILE", "OMPI_COMM_WORLD_RANK")):
            return cls.alone()
        bound_queue()  # ranks hear of one another before they load anything
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
        text, fault = b"", None
        if self.leads:
            try:
                text = json.dumps({"value": make()}).encode()
            except Exception as error:  # of any kind: the other ranks wait for an answer
                fault = error
                text = json.dumps({"error": in_one_line(error)}).encode()
        length = int(self._sum_now(np.array([len(text)], np.int32))[0])
        padded = np.frombuffer(text.ljust(length, b"\0"), np.uint8).astype(np.int32)
        answer = json.loads(self._sum_now(padded).astype(np.uint8).tobytes())
        if "error" in answer:
            raise ValueError(answer["error"]) from fault
        return answer["value"]

    def on_lead(self, make: Callable[[], Any]) -> Any:
        """What `make` returns on rank 0 (anything); None on the others. Its one-line error is raised on every rank."""
        made: Any = None

        def keep() -> None:
            nonlocal made
            made = make()

        self.from_lead(keep)
        return made

    def wait(self) -> None:
        """Until every rank is here."""
        self.from_lead(lambda: None)

    @contextmanager
    def locked(self, out: Path) -> Iterator[None]:
        """`out` is held (files/lock.py) while this is open: by rank 0, and where it is refused, all ranks hear of it."""
        with ExitStack() as held:
            self.from_lead(lambda: held.enter_context(locked(out)))
            yield

    def _sum_now(self, values: np.ndarray) -> np.ndarray:
        return np.array(mx.distributed.all_sum(mx.array(values), group=self.group))

    def sum(self, tree: Any, dtype: mx.Dtype | None = None, after: mx.array | None = None) -> Any:
        """Every array of the tree summed over all ranks, in buckets; sent as `dtype` where it is given, returned as it came.

        Arrays go by their names, the last layers first, as a backward pass makes them. A rank that read a resume point holds
        them in another order than the rest. A bucket takes along one element, which nobody reads, of the one summed before it
        (the first: of `after`). Without that link MLX may put sums that do not need each other side by side into one CUDA
        graph; NCCL needs them in one order, one by one.
        """
        if self.size == 1:
            return tree
        from mlx.utils import tree_flatten, tree_map_with_path

        if isinstance(tree, mx.array):
            return mx.distributed.all_sum(tree, group=self.group)
        flat: Any = sorted(tree_flatten(tree), key=lambda entry: _natural(entry[0]), reverse=True)
        summed: dict[str, mx.array] = {}
        for bucket in _buckets(flat, self.bucket_bytes):
            kind = bucket[0][1].dtype
            link = [] if after is None else [after.reshape(-1)[-1:].astype(kind)]
            joined = mx.concatenate([a.reshape(-1) for _, a in bucket] + link)
            after = mx.distributed.all_sum(joined.astype(dtype or kind), group=self.group)
            total, at = after.astype(kind), 0
            for name, a in bucket:
                summed[name] = total[at : at + a.size].reshape(a.shape)
                at += a.size
            after = after[:at]
        return tree_map_with_path(lambda name, _: summed[name], tree)


def in_one_line(error: Exception) -> str:
    """What ValueError and OSError say; of another kind its name too."""
    if isinstance(error, ValueError | OSError):
        return str(error)
    said = str(error).strip()
    return f"{type(error).__name__}: {said.splitlines()[0]}" if said else type(error).__name__


def _natural(name: str) -> list[tuple[int, str]]:
    """layers.9 before layers.10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _buckets(flat: list[tuple[str, mx.array]], most: int) -> list[list[tuple[str, mx.array]]]:
    """Consecutive arrays of one dtype, up to `most` bytes together (at least one)."""
    buckets: list[list[tuple[str, mx.array]]] = []
    size = 0
    for name, a in flat:
        if not buckets or buckets[-1][0][1].dtype != a.dtype or size + a.nbytes > most:
            buckets.append([])
            size = 0
        buckets[-1].append((name, a))
        size += a.nbytes
    return buckets
