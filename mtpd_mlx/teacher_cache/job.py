"""`prepare`, `Job`: what a cache run will do: options, base, data, and the shards that are still to make.
Called by `mtpd cache` and the demo; teacher_cache/writer.py does it."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mtpd_mlx.data import PackedDataset, Splits, load_dataset
from mtpd_mlx.data.counts import Counts, check, say
from mtpd_mlx.families.table import check_float16
from mtpd_mlx.files.atomic import leftovers
from mtpd_mlx.files.lock import check_unlocked
from mtpd_mlx.model.base import Base, load_base, say_if_slow
from mtpd_mlx.model.compute import compute_in, dtype_of
from mtpd_mlx.model.finite import type_name
from mtpd_mlx.model.load_save import reference_base, versions
from mtpd_mlx.model.runtime import mx
from mtpd_mlx.options.cache import CacheConfig
from mtpd_mlx.options.resume import ON_RESUME, resumed
from mtpd_mlx.options.schema import as_dict, build, flag, read_values
from mtpd_mlx.options.train import DataConfig
from mtpd_mlx.teacher_cache.format import (
    INDEX_NAME,
    SPLITS,
    CacheIndex,
    Layout,
    SplitIndex,
    bytes_per_token,
    read_index,
    row_bytes,
    shard_header,
    shard_name,
    shard_rows,
)
from mtpd_mlx.teacher_cache.reader import check_sha256, check_size
from mtpd_mlx.text.tokenizer import Tokenizer

LOCATIONS = ("model", "data")  # may differ on --resume: contents are compared instead


@dataclass(frozen=True)
class CacheOptions:
    cache: CacheConfig
    data: DataConfig

    @classmethod
    def classes(cls) -> tuple[type, ...]:
        return (CacheConfig, DataConfig)

    @classmethod
    def build(cls, file_values: dict[str, Any], flags: dict[str, Any]) -> "CacheOptions":
        return cls(*build(cls.classes(), file_values, flags))

    def to_dict(self) -> dict[str, Any]:
        return as_dict(self.cache, self.data)


def resumed_options(file_values: dict[str, Any], flags: dict[str, Any]) -> CacheOptions:
    """The options an interrupted cache was started with; given ones that say otherwise are refused."""
    given = read_values(CacheOptions.classes(), file_values, flags)
    out = Path(given.get("out", CacheConfig.out))
    saved = read_index(out).options
    return CacheOptions(*resumed(CacheOptions.classes(), saved, given, out=out, moved=LOCATIONS, what="interrupted cache"))


@dataclass
class Job:
    """A cache to make: what runs, over what, and the index so far (on --resume with the shards that are good)."""

    out: Path
    base: Base
    splits: dict[str, PackedDataset]
    index: CacheIndex
    batch_size: int
    damaged: tuple[str, ...] = ()

    def missing(self) -> Iterator[tuple[str, int, int]]:
        """(split, number, rows) of the shards still to make."""
        for split, entry in self.index.splits.items():
            done = {s.file for s in entry.shards}
            for number, rows in enumerate(shard_rows(entry.rows, self.index.rows_per_shard)):
                if shard_name(split, number) not in done:
                    yield split, number, rows

    @property
    def total_tokens(self) -> int:
        """Positions stored, padding included."""
        return sum(e.rows for e in self.index.splits.values()) * self.index.layout.max_seq_length

    @property
    def missing_tokens(self) -> int:
        return sum(rows for _, _, rows in self.missing()) * self.index.layout.max_seq_length

    @property
    def missing_bytes(self) -> int:
        return sum(shard_header(self.index.layout, rows)[2] for _, _, rows in self.missing())


def prepare(options: CacheOptions) -> Job:
    """Loads base and data and plans the shards. Refuses, in one line, a folder in use and a --resume that would not fit."""
    cfg, out = options.cache, Path(options.cache.out)
    if cfg.model is None:
        raise ValueError("missing option --model")
    check_unlocked(out)
    if not cfg.resume:
        _check_folder(out, cfg.overwrite)
    base = _load(cfg)
    base.check_length(options.data.max_seq_length)
    assert base.path is not None
    tokenizer = Tokenizer.from_folder(base.path, base.vocab_size)
    if options.data.data_weights:
        raise ValueError("--data-weights: not for a cache, whose every row is stored once")
    loaded = load_dataset(options.data, tokenizer)
    splits = {name: part for name in SPLITS if (part := getattr(loaded, name)) is not None}
    counts = {name: part.counts() for name, part in splits.items()}
    say(counts)
    check(counts, ", ".join(options.data.data), options.data.max_seq_length, options.data.mask_prompt)
    layout = _layout(base, cfg, options.data)
    batch_size = options.data.batch_size
    index = CacheIndex(
        reference_base(base, out, cfg.model),
        layout,
        max(1, int(cfg.shard_mb * 1e6) // (row_bytes(layout) * batch_size)) * batch_size,
        _describe_data(options.data, loaded),
        {name: _describe_split(part, counts[name]) for name, part in splits.items()},
        {name: value for name, value in options.to_dict().items() if name not in ON_RESUME},
        versions(),
        type_name(base.dtype),
    )
    job = Job(out, base, splits, index, batch_size)
    return _take_up(job, read_index(out)) if cfg.resume else job


def _cache_files(out: Path) -> list[Path]:
    """Everything a cache run leaves in its folder: index, shards and what a killed run was writing."""
    shards = [file for split in SPLITS for file in out.glob(f"{split}-[0-9][0-9][0-9][0-9][0-9].safetensors")]
    return [*out.glob(INDEX_NAME), *shards, *leftovers(out, INDEX_NAME, *(f"{s}-*.safetensors" for s in SPLITS))]


def _check_folder(out: Path, overwrite: bool) -> None:
    if not overwrite and _cache_files(out):
        raise ValueError(f"--out {out}: holds a cache already; use --resume, --overwrite or another folder")


def _load(cfg: CacheConfig) -> Base:
    """A quantised base keeps its integers unless --dequantize."""
    assert cfg.model is not None
    adapter = None if cfg.adapter_path is None else Path(cfg.adapter_path).expanduser()
    base = load_base(cfg.model, dequantize=cfg.dequantize, adapter=adapter)
    if cfg.cache_dtype == "float16":
        check_float16(base.dims.model_type, f"{flag('cache_dtype')} float16", "bfloat16")
    say_if_slow(base)
    compute_in(base, cfg.compute_dtype, None if base.is_quantized else mx.bfloat16, flag("compute_dtype"))
    base.model.freeze()
    return base


def _layout(base: Base, cfg: CacheConfig, data: DataConfig) -> Layout:
    """top_logits keep the precision they were computed in: bfloat16 ones fit in float16, whose mantissa is longer."""
    logits = base.logits(base.norm(base.trunk(mx.zeros((1, 1), mx.int32)))).dtype  # lazy: nothing runs
    return Layout(
        base.hidden_size,
        base.vocab_size,
        data.max_seq_length,
        min(cfg.top_n, base.vocab_size),
        type_name(dtype_of(cfg.cache_dtype)),
        "float32" if logits == mx.float32 else "float16",
    )


def _describe_split(part: PackedDataset, c: Counts) -> SplitIndex:
    return SplitIndex(c.rows, c.tokens, part.sha256, (), c.targets, c.drafted, c.cut, c.empty)


def _describe_data(cfg: DataConfig, splits: Splits) -> dict[str, Any]:
    options = {name: getattr(cfg, name) for name in ("max_seq_length", "mask_prompt", "pack", "valid_share")}
    sums = {"train_sha256": splits.train.sha256, "valid_sha256": splits.valid.sha256 if splits.valid else None}
    return sums | options


def _take_up(job: Job, old: CacheIndex) -> Job:
    """The job with the good shards of the interrupted cache; damaged ones are made again. What says where base and data lie is
    the job's: they may have moved."""
    for name, got, expected in _identity(job.index, old):
        if got != expected:
            raise ValueError(f"--resume: {name}: got {got!r}, the interrupted cache has {expected!r}")
    splits, damaged = {}, []
    for name, entry in old.splits.items():
        good = []
        for shard in entry.shards:
            try:
                check_size(job.out / shard.file, shard)
                check_sha256(job.out / shard.file, shard)
                good.append(shard)
            except ValueError as error:
                damaged.append(str(error))
        splits[name] = replace(entry, shards=tuple(good))
    return replace(job, index=replace(job.index, splits=splits), damaged=tuple(damaged))


def _identity(new: CacheIndex, old: CacheIndex) -> Iterator[tuple[str, Any, Any]]:
    """(name, new, old) of everything that must be equal for shards of both to belong together."""
    for name in ("fingerprint", "model_type", "hidden_size", "vocab_size"):
        yield f"base {name}", getattr(new.base, name), getattr(old.base, name)
    for name in old.data | new.data:
        yield name, new.data.get(name), old.data.get(name)
    for name in vars(old.layout):
        yield name, getattr(new.layout, name), getattr(old.layout, name)
    if old.compute_dtype is not None:
        yield "compute_dtype", new.compute_dtype, old.compute_dtype
    yield "rows_per_shard", new.rows_per_shard, old.rows_per_shard
    for name in old.splits | new.splits:
        ours, theirs = (index.splits[name].sha256 if name in index.splits else None for index in (new, old))
        yield f"{name} rows", ours, theirs


def plan_line(job: Job) -> str:
    """What the cache will take, said before work starts. ValueError when the disk has too little room."""
    layout, free = job.index.layout, _free_bytes(job)
    rows = ", ".join(f"{name} {entry.rows:,}" for name, entry in job.index.splits.items())
    total = sum(
        shard_header(layout, n)[2] for e in job.index.splits.values() for n in shard_rows(e.rows, job.index.rows_per_shard)
    )
    need = job.missing_bytes
    if need > free:
        raise ValueError(
            f"--out {job.out}: the cache needs {_size(need)} more, {_size(free)} are free; "
            "give less data, a smaller --top-n, --cache-dtype bfloat16 or another disk"
        )
    done = f", {_size(total - need)} of them there already" if need < total else ""
    return (
        f"cache: {bytes_per_token(layout):,} bytes a token x {job.total_tokens:,} tokens "
        f"(rows of {layout.max_seq_length}: {rows}) = {_size(total)}{done}; {_size(free)} free at {job.out}"
    )


def _free_bytes(job: Job) -> int:
    """Free space where the cache goes; what --overwrite or damaged shards give back counts."""
    existing = next(p for p in (job.out.absolute(), *job.out.absolute().parents) if p.exists())
    return shutil.disk_usage(existing).free + sum(file.stat().st_size for file in replaced_files(job))


def replaced_files(job: Job) -> list[Path]:
    """What lies in the folder and is not kept: an old cache (--overwrite), damaged and half-written shards (--resume)."""
    kept = {INDEX_NAME} | {s.file for e in job.index.splits.values() for s in e.shards}
    return [file for file in _cache_files(job.out) if file.name not in kept]


def _size(count: float) -> str:
    return f"{count / 1e9:,.2f} GB" if count >= 1e8 else f"{count / 1e6:,.2f} MB"
