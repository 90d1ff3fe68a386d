"""Options of `mtpd distill-data`, one by one and checked together.
Called by commands/distill_data.py and data/."""

from dataclasses import dataclass

from mtpd_mlx.options.base import ComputeOptions
from mtpd_mlx.options.measure import MeasureOptions
from mtpd_mlx.options.sampling import SamplingOptions
from mtpd_mlx.options.schema import NOT_NEGATIVE, POSITIVE, SEED, SHARE, Range, flag, option, same
from mtpd_mlx.options.text import PROMPTS_HELP, GenerateOptions, TextOptions
from mtpd_mlx.options.train import DataConfig, ModelConfig, RunConfig


@dataclass(frozen=True)
class DistillConfig:
    model: str | None = same(ModelConfig, "model")
    adapter_path: str | None = same(ModelConfig, "adapter_path")
    prompts: str | None = option(
        None,
        PROMPTS_HELP + '; also any of the formats of training data ("text": see --prompt-tokens)',
        metavar="FILE",
        path=True,
    )
    out: str = same(RunConfig, "out", default="distilled")
    max_tokens: int = same(TextOptions, "max_tokens")
    prompt_tokens: int = option(64, 'for {"text"} rows: how many of their first tokens are the prompt', takes=POSITIVE)
    batch_size: int | None = option(
        None,
        "texts written at a time",
        takes=POSITIVE,
        unset="16 on a CPU; on a GPU up to 1024, as many as a quarter of its memory holds",
    )
    temp: float = same(SamplingOptions, "temp", takes=NOT_NEGATIVE)
    top_p: float = same(SamplingOptions, "top_p", takes=SHARE)
    top_k: int = same(SamplingOptions, "top_k", takes=NOT_NEGATIVE)
    min_p: float = same(SamplingOptions, "min_p", takes=SHARE)
    seed: int = option(0, "seed of sampling", takes=SEED)
    limit: int | None = same(MeasureOptions, "limit", takes=Range(-1))  # -1: all, as earlier versions wrote it
    valid_share: float = option(DataConfig.valid_share, "share of the prompts whose texts go to valid.jsonl", takes=SHARE)
    ignore_chat_template: bool = same(GenerateOptions, "ignore_chat_template")
    dequantize: bool | None = same(ModelConfig, "dequantize", default=None, unset="on CPU only", switch=False)
    dtype: str = same(ComputeOptions, "dtype")
    overwrite: bool = same(RunConfig, "overwrite")
    resume: bool = same(RunConfig, "resume")


def check_together(cfg: DistillConfig) -> None:
    """ValueError in one line where an option is missing, or would have no effect."""
    for name in ("model", "prompts"):
        if not getattr(cfg, name):
            raise ValueError(f"missing option {flag(name)}")
    for name in ("top_p", "top_k", "min_p"):
        if cfg.temp == 0 and getattr(cfg, name):
            raise ValueError(f"{flag(name)}: expected a --temp above 0 with it (0 is greedy)")
