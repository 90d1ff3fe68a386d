"""`reporter`: mlx-lm's own callbacks (Weights & Biases, SwanLab) get what the training log gets (`--report-to`).
Called by train/run.py."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mtpd_mlx.options.train import TrainOptions


def reporter(options: "TrainOptions") -> Callable[[dict[str, Any]], None] | None:
    """A function of log records, or None where nothing is reported. ValueError for an unknown or missing service."""
    from mlx_lm.tuner.callbacks import get_reporting_callbacks

    run = options.run
    config: Any = options.to_dict()
    try:
        callback = get_reporting_callbacks(run.report_to, run.project_name or run.out, run.out, config)
    except (ValueError, ImportError) as error:
        raise ValueError(f"--report-to {run.report_to}: {error}") from error
    if callback is None:
        return None

    def report(record: dict[str, Any]) -> None:
        if "valid" in record:
            callback.on_val_loss_report(_named(record["valid"], record["iter"], "val_"))
        else:
            callback.on_train_loss_report(_named(record, record["iter"], "train_"))

    return report


def _named(record: dict[str, Any], iteration: int, prefix: str) -> dict[str, Any]:
    """Flat figures under mlx-lm's names (`iteration`, `train_loss`, `val_loss`); lists by depth: train_car_1, ..."""
    own = {"learning_rate", "tokens_per_second"}  # mlx-lm reports these without a prefix
    flat: dict[str, Any] = {"iteration": iteration}
    for name, value in record.items():
        if name == "iter":
            continue
        if isinstance(value, list):
            flat |= {f"{prefix}{name}_{k}": v for k, v in enumerate(value, start=1)}
        else:
            flat[name if name in own else prefix + name] = value
    if "loss" not in record:
        flat[prefix + "loss"] = sum(record["head_loss"])
    return flat
