"""Options of training (`mtpd train`, `extend`, `refit`), one by one and as one object, checked together.
Called by these commands and train/."""

from dataclasses import dataclass, replace
from typing import Any

from mtpd_mlx.checkpoints.format import HIDDEN_SOURCES, MAX_HEADS
from mtpd_mlx.options.schema import NOT_NEGATIVE, POSITIVE, SEED, Range, as_dict, build, flag, option, read_values, switch

TRAINS = ("heads", "joint", "lora")
LOSSES = ("mtpd", "ce", "kl", "lk", "tv")
KL_DIRECTIONS = ("forward", "reverse")
KL_REACHES = ("all", "heads")
REDUCTIONS = ("sum", "mean")
TEACHERS = ("live", "ema")
KEEPS = ("tau", "loss")
FRESH_RATE = {"adamw": 3e-3, "muon": 6e-3}  # peak learning rate of new heads, up to a hidden size of FRESH_WIDTH: docs/log.md
FRESH_WIDTH = 512
MUON_WIDTH = 1024  # hidden size up to which new heads of a frozen base train by Muon: docs/internals/training.md, docs/log.md
COPIES_SHARE = 1 / 3  # of that rate, for the copies that mtpd extend begins with
SCRATCH_SHARE = 2 / 3  # of that rate, for a base from scratch and its heads: about that of tools/experiments
OPTIMIZERS = tuple(FRESH_RATE)
FINE_RATE = 5e-4  # of a base, and of heads that are trained already
KL_START_FROM_SCRATCH = 0.5  # of --kl-start for a base from scratch, --detach-teacher: docs/results.md, part "late"


@dataclass(frozen=True)
class ModelConfig:
    model: str | None = option(
        None, "base model: a local folder in Hugging Face format, or a hub id", metavar="MODEL", path=True
    )
    adapter_path: str | None = option(None, "adapter of mlx-lm (LoRA) to apply to the base", metavar="DIR", path=True)
    model_config: str | None = option(None, "config.json of a base to train from scratch (with --train joint)", path=True)
    tokenizer: str | None = option(None, "folder with the tokenizer of a base trained from scratch", path=True)
    cache: str | None = option(
        None, "distillation cache (mtpd cache) to train from, without the base in memory; replaces --data", path=True
    )
    train: str = option(
        "heads",
        "what trains: heads (frozen base), joint (base and heads, main loss included) or lora (the same, of the base only "
        "LoRA adapters, which mlx-lm reads)",
        TRAINS,
    )
    dequantize: bool = switch("hold a quantised base in floating point (on CPU this is faster)")

    @property
    def base_trains(self) -> bool:
        """Whether the base, or adapters of it, train too."""
        return self.train != "heads"


@dataclass(frozen=True)
class LoraConfig:
    """As mlx_lm.lora has them."""

    num_layers: int = option(16, "--train lora: last layers of the base that get adapters (-1: all)", takes=Range(-1))
    lora_rank: int = option(8, "--train lora: rank of the adapters", takes=POSITIVE)
    lora_scale: float = option(20.0, "--train lora: what the adapters' output is multiplied by", takes=Range(0, above=True))


@dataclass(frozen=True)
class HeadsConfig:
    num_heads: int = option(4, "number K of cascaded MTP heads", takes=Range(1, MAX_HEADS))
    hidden_source: str = option("postnorm", "hidden state that enters the cascade and is passed on", HIDDEN_SOURCES)
    draft_vocab: int | None = option(
        None,
        "let heads draft only among this many tokens, the most frequent of the training data (default: the whole vocabulary)",
        takes=POSITIVE,
    )
    init_heads: str | None = option(
        None,
        "checkpoint (a folder or a hub id) whose heads are the starting point, also in number",
        path=True,
    )
    allow_base_mismatch: bool = switch(
        "take heads that were trained on another base (text stays exact, acceptance may fall: see mtpd refit)"
    )


@dataclass(frozen=True)
class LossConfig:
    loss: str = option(
        "mtpd",
        "loss of the heads: mtpd (alpha CE + beta top-N KL), ce, kl, lk (KL/TV hybrid), tv (end-to-end TV)",
        LOSSES,
    )
    alpha: tuple[float, ...] = option((0.3,), "weight of CE: one value, or one per head", takes=NOT_NEGATIVE)
    beta: tuple[float, ...] = option((0.5,), "weight of the distillation term: one value, or one per head", takes=NOT_NEGATIVE)
    heads_reduction: str = option(
        "sum",
        "joint training: add the sum of the heads' losses to the main loss, or their mean (1/K of the sum, as DeepSeek-V3)",
        REDUCTIONS,
    )
    top_n: int = option(10_000, "teacher tokens kept by the top-N KL (at most the vocabulary)", takes=POSITIVE)
    kl_direction: str = option(
        "forward", "of --loss mtpd and kl: KL(teacher || head), or reverse: KL(head || teacher)", KL_DIRECTIONS
    )
    detach_teacher: bool = option(
        True,
        "the KL of --loss mtpd and kl does not update the main head; off by default for --train joint and lora with --loss "
        "mtpd, since the update raised acceptance at about the same main loss",
    )
    teacher: str = option(
        "live",
        "joint training: live: the base of this step teaches; ema: an exponential moving average of its trained weights "
        "teaches, without a gradient (costs one more copy of these weights and one more pass through the base)",
        TEACHERS,
    )
    ema_decay: float = option(
        0.99,
        "--teacher ema: the average keeps min(this, (1 + i) / (10 + i)) of itself after step i = 0, 1, ...",
        takes=Range(0, 1, below=True),
    )
    kl_start: float = option(
        0.0,
        "share of the steps after which the KL of --loss mtpd begins, rising over the next tenth (0: at once; the default is "
        f"{KL_START_FROM_SCRATCH:g} for a base from scratch with a detached live teacher and --heads-reduction sum)",
        takes=Range(0, 1, below=True),
    )
    kl_reaches: str = option(
        "all",
        "joint training: the KL of --loss mtpd trains base and heads (all), or heads alone (a second pass through them)",
        KL_REACHES,
    )
    eta: float = option(3.0, "sharpness of the lk mixture: lambda = exp(-eta (1 - TV))", takes=NOT_NEGATIVE)


@dataclass(frozen=True)
class DataConfig:
    data: tuple[str, ...] = option(
        ("data",),
        "folder with train.jsonl and valid.jsonl (mlx-lm's layout), or one .jsonl or .txt file; or several to mix",
        path=True,
    )
    data_weights: tuple[float, ...] = option((), "share of each --data in training (default: by size)", takes=NOT_NEGATIVE)
    max_seq_length: int = option(512, "tokens per row (at most the base's context)", takes=Range(3))
    batch_size: int = option(4, "rows per micro-batch", takes=POSITIVE)
    mask_prompt: bool = option(False, "no loss on prompts (prompt/completion and messages data)")
    pack: bool = option(True, "join documents to fill rows; otherwise one document a row, padded")
    valid_share: float = option(
        0.02, "share of the rows held out for validation where a --data has no valid.jsonl", takes=Range(0, 1, below=True)
    )


@dataclass(frozen=True)
class OptimConfig:
    iters: int = option(1000, "optimiser steps", takes=NOT_NEGATIVE)
    optimizer: str | None = option(
        None,
        "adamw, or muon (Muon for the matrices of blocks, AdamW for the rest) (default: muon for new heads on a frozen base "
        f"with a hidden size up to {MUON_WIDTH}, else adamw)",
        OPTIMIZERS,
    )
    learning_rate: float | None = option(
        None,
        f"peak learning rate (default for new heads: {FRESH_RATE['adamw']:g}, with muon {FRESH_RATE['muon']:g}, at hidden "
        f"sizes up to {FRESH_WIDTH}, above that falling as 1 / hidden size; two thirds of it for a base from scratch, a third "
        f"in mtpd extend; {FINE_RATE:g} for a trained base and trained heads, and never less)",
        takes=NOT_NEGATIVE,
    )
    min_lr_ratio: float = option(0.1, "learning rate at the end, as a share of the peak", takes=NOT_NEGATIVE)
    warmup: int = option(50, "steps of linear warm-up (at most half of all)", takes=NOT_NEGATIVE)
    weight_decay: float = option(0.01, "weight decay (matrices only)", takes=NOT_NEGATIVE)
    adam_betas: tuple[float, ...] = option((0.9, 0.95), "AdamW betas", takes=Range(0, 1, below=True, length=2))
    max_grad_norm: float = option(1.0, "gradient clipping by global norm (0: off)", takes=NOT_NEGATIVE)
    grad_accumulation_steps: int = option(1, "micro-batches per optimiser step", takes=POSITIVE)
    compute_dtype: str = option(
        "auto",
        "dtype of the forward and backward pass; weights, optimiser and loss stay float32 (auto: bfloat16 on GPUs)",
        ("auto", "float32", "bfloat16"),
    )
    grad_reduce_dtype: str = option(
        "float32", "dtype in which ranks add up their gradients (bfloat16: half the bytes)", ("float32", "bfloat16")
    )
    grad_checkpoint: bool = option(False, "recompute blocks in the backward pass instead of keeping their activations")
    max_skipped_steps: int = option(
        10, "stop after this many steps in a row whose gradient is not finite (each is skipped; 0: never)", takes=NOT_NEGATIVE
    )


@dataclass(frozen=True)
class RunConfig:
    out: str = option("heads", "folder to write", metavar="DIR", path=True)
    seed: int = option(0, "seed of initialisation and data order", takes=SEED)
    steps_per_report: int = option(10, "steps between reports (0: only at the end)", takes=NOT_NEGATIVE)
    steps_per_eval: int = option(200, "steps between validations (0: only at start and end)", takes=NOT_NEGATIVE)
    val_batches: int = option(25, "validation batches (-1: all)", takes=Range(-1))
    keep: str | None = option(
        None,
        "step to save: the one of the largest tau on validation text, or of the least loss (of the heads; the main loss "
        "if the base trains too) (default: tau, or loss if the base trains too)",
        KEEPS,
    )
    save_every: int = option(200, "steps between resume points (0: only when interrupted)", takes=NOT_NEGATIVE)
    report_to: str | None = option(None, "services that get the figures, as in mlx-lm: wandb, swanlab, or both with a comma")
    project_name: str | None = option(None, "project name for --report-to (default: the name of --out)")
    overwrite: bool = switch("replace what --out holds")
    resume: bool = switch("continue the interrupted run in --out, with the options it was started with")


@dataclass(frozen=True)
class TrainOptions:
    """`given`: names of the options that a user set, as opposed to defaults and to those of an interrupted run."""

    model: ModelConfig
    heads: HeadsConfig
    loss: LossConfig
    data: DataConfig
    optim: OptimConfig
    run: RunConfig
    lora: LoraConfig
    given: frozenset[str] = frozenset()

    @classmethod
    def classes(cls) -> tuple[type, ...]:
        return (ModelConfig, HeadsConfig, LossConfig, DataConfig, OptimConfig, RunConfig, LoraConfig)

    @classmethod
    def build(cls, file_values: dict[str, Any], flags: dict[str, Any]) -> "TrainOptions":
        given = read_values(cls.classes(), file_values, flags)
        options = replace(cls(*build(cls.classes(), {}, given)), given=frozenset(given))
        check_together(options)
        return replace(options, loss=loss_of_joint(options)) if options.model.base_trains else options

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "TrainOptions":
        """Those of `to_dict`, checked again one by one."""
        return cls(*build(cls.classes(), values, {}))

    def to_dict(self) -> dict[str, Any]:
        return as_dict(self.model, self.heads, self.loss, self.data, self.optim, self.run, self.lora)


def loss_of_joint(options: TrainOptions) -> LossConfig:
    """The loss of joint training: mtpd's teacher is not detached where nothing says so, and where the live teacher is detached
    and the heads' losses are added up, a base from scratch is taught late (docs/results.md)."""
    loss, given = options.loss, options.given
    if loss.loss == "mtpd" and loss.kl_reaches == "all" and loss.teacher == "live" and "detach_teacher" not in given:
        loss = replace(loss, detach_teacher=False)
    pulls = loss.loss == "mtpd" and loss.detach_teacher and loss.teacher == "live" and loss.heads_reduction == "sum"
    if pulls and options.model.model_config is not None and "kl_start" not in given:
        loss = replace(loss, kl_start=KL_START_FROM_SCRATCH)
    return loss


def check_together(options: TrainOptions) -> None:
    """ValueError in one line where options that are right by themselves exclude each other, or one would have no effect."""
    model, given = options.model, options.given
    if model.cache is not None:
        if model.base_trains:
            raise ValueError(
                f"--cache: holds states of a frozen base, which --train {model.train} would change; give --data instead"
            )
        for name in ("data", "data_weights", "model_config", "tokenizer"):
            if name in given:
                raise ValueError(f"{flag(name)}: not with --cache, whose rows and base are given")
    check_loss(options.loss, model.base_trains, given)
    if options.run.project_name is not None and options.run.report_to is None:
        raise ValueError("--project-name: expected --report-to with it")
    if options.heads.allow_base_mismatch and options.heads.init_heads is None:
        raise ValueError("--allow-base-mismatch: expected --init-heads with it")
    if model.train == "lora" and model.adapter_path is not None:
        raise ValueError("--train lora: not with --adapter-path, whose adapter mlx_lm.fuse makes part of the base")
    for name in ("num_layers", "lora_rank", "lora_scale"):
        if name in given and model.train != "lora":
            raise ValueError(f"{flag(name)}: expected --train lora")
    if model.model_config is not None:
        if model.model is not None or model.train != "joint":
            raise ValueError("--model-config: expected --train joint and no --model: it makes a base from scratch")
        if model.adapter_path is not None:
            raise ValueError("--adapter-path: not with --model-config, which makes a base from scratch")


def kept_by(run: RunConfig, base_trains: bool) -> str:
    """What --keep says, or its default: of KEEPS."""
    return run.keep or ("loss" if base_trains else "tau")


OF_LOSSES = {  # of the options that some losses have: which
    "heads_reduction": ("mtpd", "ce", "kl", "lk"),  # tv is a mean over heads by itself
    "teacher": ("mtpd", "kl", "lk", "tv"),
    "alpha": ("mtpd", "ce"),
    "beta": ("mtpd", "kl"),
    "kl_direction": ("mtpd", "kl"),
    "eta": ("lk",),
}


def check_loss(loss: LossConfig, base_trains: bool, given: frozenset[str] = frozenset()) -> None:
    """ValueError where options of the loss exclude each other, or one that is given has no effect. `base_trains`: the main
    head moves."""
    if not loss.detach_teacher and (not base_trains or loss.loss not in ("mtpd", "kl")):
        raise ValueError("--no-detach-teacher: expected --train joint or lora with --loss mtpd or kl")
    if loss.kl_start and loss.loss != "mtpd":
        raise ValueError(f"--kl-start: got {loss.kl_start} with --loss {loss.loss}, which has no such start (expected 0)")
    if loss.kl_reaches == "heads" and (not base_trains or loss.loss != "mtpd" or not loss.detach_teacher):
        raise ValueError("--kl-reaches heads: expected --train joint or lora, --loss mtpd and a detached teacher")
    if loss.heads_reduction == "mean" and not base_trains:
        raise ValueError(
            "--heads-reduction mean: expected --train joint or lora (beside a frozen base there is no loss to weigh it against)"
        )
    check_teacher(loss, base_trains, given)
    for name, losses in OF_LOSSES.items():
        if name in given and loss.loss not in losses:
            raise ValueError(f"{flag(name)}: expected --loss {' or '.join(losses)} with it, got {loss.loss}")


def check_teacher(loss: LossConfig, base_trains: bool, given: frozenset[str]) -> None:
    """ValueError where --teacher ema has nothing to average, or nobody to teach."""
    if loss.teacher != "ema":
        if "ema_decay" in given:
            raise ValueError("--ema-decay: expected --teacher ema with it")
        return
    if not base_trains:
        raise ValueError("--teacher ema: expected --train joint or lora (a frozen base and its average are the same)")
    if loss.loss == "ce":
        raise ValueError("--teacher ema: expected --loss mtpd or kl or lk or tv, got ce, which has no teacher")
    if not loss.detach_teacher:
        raise ValueError("--teacher ema: not with --no-detach-teacher (an average of weights gets no gradient)")


def is_fresh(options: TrainOptions) -> bool:
    """Whether heads begin untrained on a base that stays as it is."""
    return options.model.train == "heads" and options.heads.init_heads is None


def with_rate(options: TrainOptions, hidden_size: int, share: float = 1.0) -> TrainOptions:
    """The options with an optimiser and a peak learning rate where none was given; `share` of the rate of new heads (below 1:
    of copies of trained ones)."""
    optim, scratch = options.optim, options.model.model_config is not None
    if optim.optimizer is None:
        by_muon = is_fresh(options) and share == 1.0 and hidden_size <= MUON_WIDTH
        optim = replace(optim, optimizer="muon" if by_muon else "adamw")
    assert optim.optimizer is not None
    if optim.learning_rate is None:
        share *= SCRATCH_SHARE if scratch else 1.0
        of_width = share * FRESH_RATE[optim.optimizer] * min(1.0, FRESH_WIDTH / hidden_size)
        rate = max(FINE_RATE, of_width) if scratch or is_fresh(options) else FINE_RATE
        optim = replace(optim, learning_rate=rate)
    return replace(options, optim=optim)
