"""Options of `mtpd cache`, without those of the data.
Called by commands/cache.py and teacher_cache/job.py."""

from dataclasses import dataclass

from mtpd_mlx.options.base import AUTO, DTYPES
from mtpd_mlx.options.schema import NOT_NEGATIVE, Range, option, same
from mtpd_mlx.options.train import ModelConfig, RunConfig


@dataclass(frozen=True)
class CacheConfig:
    model: str | None = same(ModelConfig, "model")
    adapter_path: str | None = same(ModelConfig, "adapter_path")
    out: str = same(RunConfig, "out", default="cache")
    top_n: int = option(
        128,
        "teacher logits kept per position, for training with a --top-n up to this (0: hidden states only)",
        takes=NOT_NEGATIVE,
    )
    cache_dtype: str = option(AUTO, "dtype of the stored hidden states (auto: bfloat16 on GPU, float32 on CPU)", DTYPES)
    compute_dtype: str = option(
        AUTO, "dtype the base runs in (auto: float32 on CPU; on GPU bfloat16, a quantised base as stored)", DTYPES
    )
    dequantize: bool = same(ModelConfig, "dequantize")
    shard_mb: float = option(256.0, "size of a shard file in MB (10^6 bytes)", takes=Range(0, above=True))
    overwrite: bool = same(RunConfig, "overwrite")
    resume: bool = same(RunConfig, "resume")
