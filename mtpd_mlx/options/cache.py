"""The options of `mtpd cache`, besides those of the data."""

from dataclasses import dataclass

from mtpd_mlx.checkpoints.adapter_format import ADAPTER_HELP
from mtpd_mlx.options.schema import NOT_NEGATIVE, Range, option

AUTO = "auto"
DTYPE_CHOICES = (AUTO, "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class CacheConfig:
    model: str | None = option(None, "base model: a local folder in Hugging Face format, or a hub id")
    adapter_path: str | None = option(None, ADAPTER_HELP)
    out: str = option("cache", "cache folder to write")
    top_n: int = option(
        128,
        "teacher logits kept per position, for training with a --top-n up to this (0: hidden states only)",
        takes=NOT_NEGATIVE,
    )
    cache_dtype: str = option(AUTO, "dtype of the stored hidden states (auto: bfloat16 on GPU, float32 on CPU)", DTYPE_CHOICES)
    compute_dtype: str = option(
        AUTO, "dtype an unquantised base runs in (auto: bfloat16 on GPU, float32 on CPU)", DTYPE_CHOICES
    )
    dequantize: bool = option(False, "run a quantised base in floating point (on CPU this is faster)")
    shard_mb: float = option(256.0, "size of a shard file in MB (10^6 bytes)", takes=Range(0, above=True))
    overwrite: bool = option(False, "replace an existing cache")
    resume: bool = option(False, "continue the interrupted cache in --out, with the options it was started with")
