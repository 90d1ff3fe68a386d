"""`CachedDataset`: a distillation cache as a data set with PackedDataset's batches, teacher included. numpy only.
Called by train/setup.py and train/step.py."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from mtpd_mlx.data.counts import Counts
from mtpd_mlx.data.packing import Batch, add_counts, epoch_order
from mtpd_mlx.files.safetensors import RawTensors
from mtpd_mlx.teacher_cache.format import (
    SAFETENSORS_NAMES,
    CacheIndex,
    Layout,
    Shard,
    file_sha256,
    numpy_dtype,
    read_index,
    row_bytes,
)


@dataclass(frozen=True)
class CachedBatch(Batch):
    """A batch with what the frozen base said about it (offsets: docs/architecture.md).

    hidden [B, T, d]: the state before the final norm; its dtype is `hidden_dtype`, bfloat16 being kept as bits in uint16.
    The rest is None where the cache holds hidden states only (top_n 0).
    top_tokens [B, T, N] (uint16 or int32) and top_logits [B, T, N] (float16 or float32): the base's N largest logits at
    each position, largest first, the lower id first among equals. logsumexp float32 [B, T] over the whole vocabulary.
    main_loss float32 [B, T]: cross-entropy of x_{i+1} at i, 0 in the last column; not masked.
    """

    hidden: np.ndarray
    hidden_dtype: str
    top_tokens: np.ndarray | None = None
    top_logits: np.ndarray | None = None
    main_loss: np.ndarray | None = None
    logsumexp: np.ndarray | None = None


MAX_MAPPED = 64  # a mapped file holds a file descriptor, and macOS gives a process 256


def check_size(file: Path, shard: Shard) -> None:
    """ValueError in one line when the file is missing or has another size than the index says."""
    if not file.is_file():
        raise ValueError(f"{file}: missing shard, expected {shard.bytes} bytes")
    if (size := file.stat().st_size) != shard.bytes:
        raise ValueError(f"{file}: truncated or damaged shard: got {size} bytes, expected {shard.bytes}")


def check_sha256(file: Path, shard: Shard) -> None:
    """ValueError if the contents of the shard differ from the index."""
    if (got := file_sha256(file)) != shard.sha256:
        raise ValueError(f"{file}: altered shard: got sha256 {got[:12]}..., expected {shard.sha256[:12]}...")


def check_tokens(file: Path, layout: Layout, views: dict[str, np.ndarray]) -> None:
    """ValueError where a token is outside the base's vocabulary: MLX reads and writes at such ids unchecked."""
    for name in ("tokens", "top_tokens"):
        ids = views.get(name)
        if ids is not None and (ids.min() < 0 or ids.max() >= layout.vocab_size):
            raise ValueError(f"{file}: {name}: got ids {ids.min()}..{ids.max()}, expected 0..{layout.vocab_size - 1}")


def map_shard(file: Path, layout: Layout, shard: Shard) -> dict[str, np.ndarray]:
    """Views [R, ...] of each tensor in the memory-mapped file; nothing is read until rows are taken."""
    held, tensors = RawTensors([file]), layout.tensors()
    expected = {name: (SAFETENSORS_NAMES[t.dtype], [shard.rows, *t.shape]) for name, t in tensors.items()}
    if {name: (entry["dtype"], entry["shape"]) for name, entry in held.table.items()} != expected:
        raise ValueError(f"{file}: got another header than expected for {shard.rows} rows of {row_bytes(layout)} bytes")
    return {name: held.mapped(name).bits.view(numpy_dtype(t.dtype)) for name, t in tensors.items()}


def open_cache(folder: Path) -> CacheIndex:
    """The index of a complete cache whose shards are all there in full size. ValueError in one line otherwise."""
    index = read_index(folder)
    for name, split in index.splits.items():
        if not split.complete:
            done = sum(s.rows for s in split.shards)
            raise ValueError(
                f"{folder}: incomplete cache ({name}: {done} of {split.rows} rows); "
                f"finish it with: mtpd cache --resume --out {folder}"
            )
        for shard in split.shards:
            check_size(folder / shard.file, shard)
    return index


class CachedDataset:
    """Rows of one split of a cache, in the order PackedDataset would give them for the same seed and batch size.

    Rows are copied out of memory-mapped shards, so memory holds a batch. A shard's sha256 is checked when a row of it is
    first read.
    """

    def __init__(self, folder: Path, split: str, batch_size: int, seed: int):
        if batch_size < 1:
            raise ValueError(f"batch_size: got {batch_size}, expected at least 1")
        self.folder, self.index = Path(folder), open_cache(Path(folder))
        if split not in self.index.splits:
            raise ValueError(f"{folder}: no split {split!r}, expected one of {', '.join(self.index.splits)}")
        self.split, self.batch_size, self.seed = split, batch_size, seed
        self._entry = self.index.splits[split]
        self._starts = np.cumsum([0, *(s.rows for s in self._entry.shards)])
        self._verified: set[int] = set()
        self._shard = lru_cache(maxsize=MAX_MAPPED)(self._open_shard)
        self._order = lru_cache(maxsize=2)(partial(epoch_order, self.num_rows, seed))

    @property
    def num_rows(self) -> int:
        return self._entry.rows

    @property
    def num_tokens(self) -> int:
        return self._entry.tokens

    @property
    def sha256(self) -> str:
        """That of the PackedDataset the cache was made from."""
        return self._entry.sha256

    def counts(self) -> Counts | None:
        return self._entry.counts()

    def token_counts(self) -> np.ndarray:
        """How often each token id occurs, int64 [highest id + 1]. Reads (and checks) every shard."""
        shards = (self._shard(number) for number in range(len(self._entry.shards)))
        return add_counts(np.bincount(shard["tokens"][shard["segments"] > 0]) for shard in shards)

    def batch(self, step: int) -> CachedBatch:
        """Micro-batch number `step`: rows step*B .. step*B+B-1 of an endless sequence of shuffled epochs."""
        positions = range(step * self.batch_size, (step + 1) * self.batch_size)
        return self._take([int(self._order(p // self.num_rows)[p % self.num_rows]) for p in positions], self.batch_size)

    def iter_batches(self, batch_size: int) -> Iterator[CachedBatch]:
        """All rows once, in order; the last batch is filled with padding rows so that shapes repeat."""
        for start in range(0, self.num_rows, batch_size):
            yield self._take(list(range(start, min(start + batch_size, self.num_rows))), batch_size)

    def _take(self, rows: list[int], batch_size: int) -> CachedBatch:
        """Copies `rows` out of their shards; rows of zeros fill the batch."""
        layout = self.index.layout
        arrays = {n: np.zeros((batch_size, *t.shape), numpy_dtype(t.dtype)) for n, t in layout.tensors().items()}
        for i, row in enumerate(rows):
            number = int(np.searchsorted(self._starts, row, side="right")) - 1
            shard = self._shard(number)
            for name, array in arrays.items():
                array[i] = shard[name][row - self._starts[number]]
        return CachedBatch(**arrays, hidden_dtype=layout.dtype)

    def _open_shard(self, number: int) -> dict[str, np.ndarray]:
        shard = self._entry.shards[number]
        file = self.folder / shard.file
        check_size(file, shard)
        if number in self._verified:
            return map_shard(file, self.index.layout, shard)
        check_sha256(file, shard)
        views = map_shard(file, self.index.layout, shard)
        check_tokens(file, self.index.layout, views)
        self._verified.add(number)
        return views
