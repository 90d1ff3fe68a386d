"""`write_cache`: the frozen base run once over the data, shard by shard. A killed run loses one shard.
Called by `mtpd cache` and the demo.

A shard is put in place whole (files/atomic.py), and then the index is replaced: it never names a shard that is not there.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from mtpd_mlx.data import Batch, PackedDataset
from mtpd_mlx.files.atomic import put_in_place, temporary_name
from mtpd_mlx.files.lock import locked
from mtpd_mlx.teacher_cache.format import (
    CacheIndex,
    Layout,
    Shard,
    file_sha256,
    numpy_dtype,
    shard_header,
    shard_name,
    write_index,
)
from mtpd_mlx.teacher_cache.job import Job, replaced_files
from mtpd_mlx.teacher_cache.teacher import teacher_rows


def write_cache(job: Job, show: Callable[[int], None] = lambda tokens: None) -> CacheIndex:
    """Makes every missing shard; `show` gets the number of tokens of each finished batch. Returns the complete index."""
    with locked(job.out):
        return _write_missing(job, show)


def _write_missing(job: Job, show: Callable[[int], None]) -> CacheIndex:
    write_index(job.out, job.index)
    for file in replaced_files(job):
        file.unlink()
    for split, number, rows in list(job.missing()):
        shard = _write_shard(job, split, number, rows, show)
        entry = job.index.splits[split]
        shards = tuple(sorted((*entry.shards, shard), key=lambda s: s.file))
        job.index = replace(job.index, splits=job.index.splits | {split: replace(entry, shards=shards)})
        write_index(job.out, job.index)
    return job.index


def _write_shard(job: Job, split: str, number: int, rows: int, show: Callable[[int], None]) -> Shard:
    layout, first = job.index.layout, number * job.index.rows_per_shard
    with ShardFile(job.out / shard_name(split, number), layout, rows) as file:
        for batch in _batches(job.splits[split], first, rows, job.batch_size):
            count = min(job.batch_size, rows - file.written)  # the rest of the last batch is padding
            arrays = teacher_rows(job.base, layout, batch.tokens)
            arrays |= {"tokens": batch.tokens, "segments": batch.segments, "loss_mask": batch.loss_mask}
            file.append({name: array[:count] for name, array in arrays.items()})
            show(count * layout.max_seq_length)
        return file.commit()


def _batches(dataset: PackedDataset, first: int, rows: int, batch_size: int) -> Iterator[Batch]:
    part = slice(first, first + rows)
    own = dataset.rows
    return PackedDataset(Batch(own.tokens[part], own.segments[part], own.loss_mask[part]), batch_size, 0).iter_batches(
        batch_size
    )


class ShardFile:
    """One shard being written, batch by batch: `append` fills rows, `commit` gives it its name. Leaving without commit
    removes what was written."""

    def __init__(self, final: Path, layout: Layout, rows: int):
        self.final, self.temporary = final, temporary_name(final)
        self.layout, self.rows, self.written = layout, rows, 0
        header, self._offsets, self._size = shard_header(layout, rows)
        self._file = self.temporary.open("wb")
        self._file.write(header)
        self._file.truncate(self._size)

    def __enter__(self) -> "ShardFile":
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.close()
        self.temporary.unlink(missing_ok=True)

    def append(self, arrays: dict[str, np.ndarray]) -> None:
        """arrays: every tensor of the layout, [n, ...], for the next n rows."""
        count = len(arrays["tokens"])
        for name, tensor in self.layout.tensors().items():
            got, expected = arrays[name], (count, *tensor.shape)
            if got.shape != expected or got.dtype != numpy_dtype(tensor.dtype):
                raise ValueError(f"{name}: got {got.dtype} {got.shape}, expected {tensor.dtype} {expected}")
            self._file.seek(self._offsets[name] + self.written * tensor.row_bytes)
            self._file.write(np.ascontiguousarray(got).data)
        self.written += count

    def commit(self) -> Shard:
        if self.written != self.rows:
            raise ValueError(f"{self.final}: got {self.written} rows, expected {self.rows}")
        self._file.close()
        shard = Shard(self.final.name, self.rows, self._size, file_sha256(self.temporary))
        put_in_place(self.temporary, self.final)
        return shard
