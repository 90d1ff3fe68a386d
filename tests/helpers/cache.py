"""Small caches for the tests of mtpd_mlx.cache."""

from pathlib import Path
from typing import Any

from mtpd_mlx.data import Splits, load_dataset
from mtpd_mlx.options.train import DataConfig
from mtpd_mlx.text.tokenizer import Tokenizer

TOP_N = 7
SMALL = {"max_seq_length": 32, "batch_size": 2, "top_n": TOP_N, "shard_mb": 0.05}


def arguments(base: Path, data: Path, out: Path, *extra: str) -> list[str]:
    """The command line of a cache of several shards a split."""
    options = [part for name, value in SMALL.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    return ["cache", "--model", str(base), "--data", str(data), "--out", str(out), *options, *extra]


def make(base: Path, data: Path, out: Path, **options: Any) -> Any:
    """Writes a cache and returns its index."""
    from mtpd_mlx.teacher_cache.job import CacheOptions, prepare
    from mtpd_mlx.teacher_cache.writer import write_cache

    values = SMALL | {"model": str(base), "data": str(data), "out": str(out)} | options
    return write_cache(prepare(CacheOptions.build(values, {})))


def rows_of(base: Path, data: Path, batch_size: int = 2, seed: int = 0, **options: Any) -> Splits:
    cfg = DataConfig(data=(str(data),), max_seq_length=SMALL["max_seq_length"], batch_size=batch_size, **options)  # type: ignore[arg-type]
    return load_dataset(cfg, Tokenizer.from_folder(base), seed)


def files_of(folder: Path) -> dict[str, bytes]:
    """Every shard of a cache, by name."""
    return {file.name: file.read_bytes() for file in sorted(folder.glob("*.safetensors"))}
