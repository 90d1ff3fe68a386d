"""The options of a training run as one object, from flags and YAML or from an interrupted run."""

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from mtpd_mlx.config import HeadsConfig, LossConfig, ModelConfig, OptimConfig, RunConfig
from mtpd_mlx.data import DataConfig
from mtpd_mlx.schema import as_dict, build

OPTIONS_NAME = "train_options.json"


@dataclass(frozen=True)
class TrainOptions:
    model: ModelConfig
    heads: HeadsConfig
    loss: LossConfig
    data: DataConfig
    optim: OptimConfig
    run: RunConfig

    @classmethod
    def classes(cls) -> tuple[type, ...]:
        return (ModelConfig, HeadsConfig, LossConfig, DataConfig, OptimConfig, RunConfig)

    @classmethod
    def build(cls, file_values: dict[str, Any], flags: dict[str, Any]) -> "TrainOptions":
        return cls(*build(cls.classes(), file_values, flags))

    def to_dict(self) -> dict[str, Any]:
        return as_dict(*(getattr(self, f.name) for f in fields(self)))


def resumed_options(flags: dict[str, Any]) -> TrainOptions:
    """The options an interrupted run was started with; flags that say otherwise are refused."""
    out = Path(flags.get("out", RunConfig.out))
    file = out / OPTIONS_NAME
    try:
        saved = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"--resume: {out} holds no interrupted run ({OPTIONS_NAME} unreadable)") from error
    for name, value in flags.items():
        if name in saved and name not in ("resume", "overwrite", "out") and _plain(value) != saved[name]:
            raise ValueError(f"--resume: {name} is {_plain(value)!r}, the interrupted run has {saved[name]!r}")
    saved |= {"out": str(out), "resume": True, "overwrite": False}
    return TrainOptions.build(saved, {})


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, (tuple, list)) else value
