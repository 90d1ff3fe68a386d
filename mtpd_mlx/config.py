"""The options of training. Every default of `mtpd train` and `mtpd extend` is here and nowhere else."""

from dataclasses import dataclass

from mtpd_mlx.checkpoint_format import HIDDEN_SOURCES, check_num_heads
from mtpd_mlx.schema import option

LOSSES = ("mtpd", "ce", "kl", "lk", "tv")
KL_DIRECTIONS = ("forward", "reverse")


@dataclass(frozen=True)
class ModelConfig:
    model: str | None = option(None, "base model: a local folder in Hugging Face format, or a hub id")
    adapter_path: str | None = option(None, "adapter of mlx-lm (LoRA) to apply to the base")
    model_config: str | None = option(None, "config.json of a base to train from scratch (with --train joint)")
    tokenizer: str | None = option(None, "folder with the tokenizer of a base trained from scratch")
    cache: str | None = option(
        None, "distillation cache (mtpd cache) to train from, without the base in memory; replaces --data"
    )
    train: str = option(
        "heads",
        "what is trained: heads (frozen base) or joint (base and heads, main loss included)",
        ("heads", "joint"),
    )
    dequantize: bool = option(False, "hold a quantised base in floating point (on CPU this is faster)")


@dataclass(frozen=True)
class HeadsConfig:
    num_heads: int = option(4, "number K of cascaded MTP heads")
    hidden_source: str = option("postnorm", "hidden state that enters the cascade and is passed on", HIDDEN_SOURCES)
    draft_vocab: int | None = option(
        None, "draft only among so many tokens, the most frequent of the training data (default: the whole vocabulary)"
    )
    init_heads: str | None = option(None, "checkpoint (a folder or a hub id) whose heads are the starting point")
    allow_base_mismatch: bool = option(False, "start from --init-heads that were trained on another base")

    def __post_init__(self) -> None:
        check_num_heads(self.num_heads, "--num-heads")


@dataclass(frozen=True)
class LossConfig:
    loss: str = option(
        "mtpd",
        "loss of the heads: mtpd (alpha CE + beta top-N KL), ce, kl, lk (KL/TV hybrid), tv (end-to-end TV)",
        LOSSES,
    )
    alpha: tuple[float, ...] = option((0.3,), "weight of CE: one value, or one per head")
    beta: tuple[float, ...] = option((0.5,), "weight of the distillation term: one value, or one per head")
    top_n: int = option(10_000, "teacher tokens kept by the top-N KL (at most the vocabulary)")
    kl_direction: str = option("forward", "of mtpd and kl: KL(teacher || head) or, reverse, KL(head || teacher)", KL_DIRECTIONS)
    detach_teacher: bool = option(True, "no gradient of mtpd's and kl's KL to the main head (off: an ablation, joint training)")
    kl_start: float = option(
        0.0, "share of the steps after which mtpd's KL begins; it rises to its weight over the next tenth (0: at once)"
    )
    eta: float = option(3.0, "sharpness of the lk mixture: lambda = exp(-eta (1 - TV))")


@dataclass(frozen=True)
class OptimConfig:
    iters: int = option(1000, "optimiser steps")
    learning_rate: float = option(5e-4, "peak learning rate")
    min_lr_ratio: float = option(0.1, "learning rate at the end, as a share of the peak")
    warmup: int = option(50, "steps of linear warm-up")
    weight_decay: float = option(0.01, "AdamW weight decay (matrices only)")
    adam_betas: tuple[float, ...] = option((0.9, 0.95), "AdamW betas")
    max_grad_norm: float = option(1.0, "gradient clipping by global norm (0: off)")
    grad_accumulation_steps: int = option(1, "micro-batches per optimiser step")
    compute_dtype: str = option(
        "auto",
        "dtype of the forward and backward pass; weights, optimiser and loss stay float32 (auto: bfloat16 on GPUs)",
        ("auto", "float32", "bfloat16"),
    )
    grad_reduce_dtype: str = option(
        "float32", "dtype in which ranks add up their gradients (bfloat16: half the bytes)", ("float32", "bfloat16")
    )
    grad_checkpoint: bool = option(False, "recompute blocks in the backward pass instead of keeping their activations")
    max_skipped_steps: int = option(10, "stop after so many steps in a row whose gradient is not finite (each is skipped)")


@dataclass(frozen=True)
class RunConfig:
    out: str = option("heads", "checkpoint folder to write")
    seed: int = option(0, "seed of initialisation and data order")
    steps_per_report: int = option(10, "steps between reports")
    steps_per_eval: int = option(200, "steps between validations")
    val_batches: int = option(25, "validation batches (-1: all)")
    save_every: int = option(200, "steps between resume points")
    report_to: str | None = option(None, "services that get the figures, as in mlx-lm: wandb, swanlab, or both with a comma")
    project_name: str | None = option(None, "project name for --report-to (default: the name of --out)")
    overwrite: bool = option(False, "replace an existing checkpoint folder")
    resume: bool = option(False, "continue the interrupted run in --out")
