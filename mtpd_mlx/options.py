"""The options of a training run as one object, from flags and YAML or from an interrupted run."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mtpd_mlx.config import (
    FINE_RATE,
    FRESH_RATE,
    FRESH_WIDTH,
    KL_START_FROM_SCRATCH,
    SCRATCH_SHARE,
    HeadsConfig,
    LoraConfig,
    LossConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
)
from mtpd_mlx.data import DataConfig
from mtpd_mlx.run_folder import read_run
from mtpd_mlx.schema import as_dict, build, flag, read_values

ON_RESUME = ("resume", "overwrite", "out")  # may differ from those of the interrupted run


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
    """The loss of joint training: mtpd's teacher is not detached where nothing says so, and where it is detached, a base from
    scratch is taught late (docs/results.md)."""
    loss, given = options.loss, options.given
    if loss.loss == "mtpd" and loss.kl_reaches == "all" and "detach_teacher" not in given:
        loss = replace(loss, detach_teacher=False)
    if loss.loss == "mtpd" and loss.detach_teacher and options.model.model_config is not None and "kl_start" not in given:
        loss = replace(loss, kl_start=KL_START_FROM_SCRATCH)
    return loss


def check_together(options: TrainOptions) -> None:
    """ValueError in one line where options that are right by themselves exclude each other, or one would have no effect."""
    model, given = options.model, options.given
    if model.cache is not None:
        if model.base_trains:
            raise ValueError(f"--cache: holds the states of a frozen base, and --train {model.train} would change it")
        for name in ("data_weights", "model_config", "tokenizer"):
            if name in given:
                raise ValueError(f"{flag(name)}: not with --cache, whose rows and base are given")
    if not options.loss.detach_teacher and not model.base_trains:
        raise ValueError("--no-detach-teacher: expected --train joint or lora: the main head of a frozen base does not move")
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


def with_rate(options: TrainOptions, hidden_size: int, share: float = 1.0) -> TrainOptions:
    """The options with a peak learning rate where none was given; `share` of that of new heads."""
    if options.optim.learning_rate is not None:
        return options
    scratch = options.model.model_config is not None
    fresh = scratch or (options.model.train == "heads" and options.heads.init_heads is None)
    share *= SCRATCH_SHARE if scratch else 1.0
    of_width = share * FRESH_RATE[options.optim.optimizer] * min(1.0, FRESH_WIDTH / hidden_size)
    rate = max(FINE_RATE, of_width) if fresh else FINE_RATE
    return replace(options, optim=replace(options.optim, learning_rate=rate))


def resumed_options(file_values: dict[str, Any], flags: dict[str, Any]) -> TrainOptions:
    """The options that the interrupted run in --out was started with."""
    given = read_values(TrainOptions.classes(), file_values, flags)
    return taken_up(Path(given.get("out", RunConfig.out)), given)


def taken_up(folder: Path, given: dict[str, Any], finished: bool = False) -> TrainOptions:
    """The options of the run in `folder`; values that say otherwise are refused, and so is a run that came to its end, unless
    `finished`."""
    saved = read_run(folder)
    if saved.finished and not finished:
        raise ValueError(f"--resume: the run in {folder} has come to its end; nothing is left to do")
    options = TrainOptions.from_dict(saved.options | {"out": str(folder), "resume": True, "overwrite": False})
    values = options.to_dict()
    for name, value in given.items():
        if name not in ON_RESUME and _plain(value) != values[name]:
            raise ValueError(f"--resume: {name} is {_plain(value)!r}, the interrupted run has {values[name]!r}")
    return options


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, (tuple, list)) else value
