"""Options that name heads and the base they run on.
Called by every command that loads both."""

from dataclasses import dataclass

from mtpd_mlx.options.schema import REQUIRED, argument, option, same, switch
from mtpd_mlx.options.train import HeadsConfig, LoraConfig, ModelConfig, TrainOptions

AUTO = "auto"
DTYPES = (AUTO, "float32", "bfloat16", "float16")


@dataclass(frozen=True, kw_only=True)
class CheckpointOptions:
    GROUP = "base"

    checkpoint: str = argument("heads checkpoint: a folder or a hub id", path=True)
    model: str | None = option(
        None, "base to use instead of the one that the checkpoint names: a folder or a hub id", metavar="MODEL", path=True
    )
    adapter_path: str | None = same(ModelConfig, "adapter_path")
    allow_base_mismatch: bool = same(HeadsConfig, "allow_base_mismatch")


@dataclass(frozen=True, kw_only=True)
class ComputeOptions:
    dtype: str = option(
        AUTO, "floating-point type to compute in (auto: float32 on a CPU, where others are slow, elsewhere as stored)", DTYPES
    )


@dataclass(frozen=True, kw_only=True)
class MeasuredOptions(ComputeOptions, CheckpointOptions):
    """Of commands that run base and heads."""


@dataclass(frozen=True, kw_only=True)
class RunnableOptions(MeasuredOptions):
    """Of commands that decode with heads, or plainly with a base alone."""

    checkpoint: str = argument("heads checkpoint, or for plain decoding a base: a folder or a hub id", path=True)
    dequantize: bool | None = same(ModelConfig, "dequantize", default=None, unset="on CPU only", switch=False)


# What `mtpd extend` and `mtpd refit` take of training: the heads are the checkpoint's, and no adapters are trained.
TRAINING_OF_HEADS = tuple(cls for cls in TrainOptions.classes() if cls not in (HeadsConfig, LoraConfig))


@dataclass(frozen=True, kw_only=True)
class ExtendOptions:
    checkpoint: str = same(CheckpointOptions, "checkpoint")
    to: int = option(REQUIRED, "number of heads wanted, for example 8 or 16")
    train_free: bool = switch("copy only: no data, no training")


@dataclass(frozen=True, kw_only=True)
class RefitOptions:
    checkpoint: str = same(CheckpointOptions, "checkpoint")
