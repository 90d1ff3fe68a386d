"""`resumed`: the options of an interrupted run. Given options that differ are refused.
Called by `mtpd train`, `extend`, `refit`, `cache` and `distill-data` for --resume."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from mtpd_mlx.options.schema import as_dict, build

ON_RESUME = ("resume", "overwrite", "out")  # may differ from those of the interrupted run


def resumed(
    classes: tuple[type, ...],
    saved: dict[str, Any],
    given: dict[str, Any],
    *,
    out: Path,
    moved: Collection[str] = (),
    what: str = "interrupted run",
) -> list[Any]:
    """One instance per dataclass. `saved`: what the run stored; `given`: what is asked for now (schema.read_values); `out`: the
    run's folder; `moved`: names of options that may say otherwise now, and do; `what`: was interrupted.

    ValueError in one line for a given option that differs, and for a stored value that its option does not take.
    """
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in given.items()}  # as files hold it
    now = {name: plain[name] for name in moved if name in plain}
    built = build(classes, saved | now | {"out": str(out), "resume": True, "overwrite": False}, {})
    begun_with = as_dict(*built)
    for name, value in plain.items():
        if name not in ON_RESUME and value != begun_with[name]:
            raise ValueError(f"--resume: {name} is {value!r}, the {what} has {begun_with[name]!r}")
    return built
