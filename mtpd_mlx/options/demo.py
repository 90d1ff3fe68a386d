"""The options of `mtpd demo`."""

from dataclasses import dataclass
from pathlib import Path

from mtpd_mlx.options.schema import same
from mtpd_mlx.options.train import RunConfig


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    out: Path = same(RunConfig, "out", default=Path("runs/demo"))
    overwrite: bool = same(RunConfig, "overwrite")
