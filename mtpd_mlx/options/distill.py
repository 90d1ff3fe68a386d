"""The options of `mtpd distill-data`."""

from dataclasses import dataclass

from mtpd_mlx.checkpoints.adapter_format import ADAPTER_HELP
from mtpd_mlx.options.schema import NOT_NEGATIVE, POSITIVE, SEED, SHARE, Range, option


@dataclass(frozen=True)
class DistillConfig:
    model: str = option("", "the base: a local folder in Hugging Face format, or a hub id")
    adapter_path: str | None = option(None, ADAPTER_HELP)
    prompts: str = option("", "file of prompts (.jsonl or .txt) in any of mlx-lm's data formats")
    out: str = option("distilled", "folder to write train.jsonl and valid.jsonl to")
    max_tokens: int = option(256, "new tokens per prompt", takes=POSITIVE)
    prompt_tokens: int = option(64, 'for {"text"} rows: how many of their first tokens are the prompt', takes=POSITIVE)
    batch_size: int = option(16, "prompts generated at a time", takes=POSITIVE)
    temp: float = option(0.0, "sampling temperature (0: greedy)", takes=NOT_NEGATIVE)
    top_p: float = option(0.0, "nucleus sampling (0: off)", takes=SHARE)
    top_k: int = option(0, "sample from the k best tokens (0: off)", takes=NOT_NEGATIVE)
    min_p: float = option(0.0, "least probability, as a share of the best token's (0: off)", takes=SHARE)
    seed: int = option(0, "seed of sampling and of the split", takes=SEED)
    limit: int = option(-1, "use only the first prompts of the file (-1: all)", takes=Range(-1))
    valid_share: float = option(0.02, "share of the prompts that goes to valid.jsonl", takes=SHARE)
    ignore_chat_template: bool = option(False, "do not wrap prompts in the tokenizer's chat template")
    dequantize: bool = option(False, "hold a quantised base in floating point (on CPU this is faster)")
    overwrite: bool = option(False, "replace earlier output")
    resume: bool = option(False, "continue an interrupted run")
