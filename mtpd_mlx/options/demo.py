"""Options of `mtpd demo`.
Called by commands/demo.py."""

from dataclasses import dataclass
from pathlib import Path

from mtpd_mlx.options.schema import same, switch
from mtpd_mlx.options.train import RunConfig


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    out: Path = same(RunConfig, "out", default=Path("runs/demo"))
    bundled: bool = switch("the bundled small model alone; nothing is fetched")
    overwrite: bool = switch("replace the demo in --out (an interrupted one goes on where it was)")
