"""`ProgressBar`: a bar, loss per head and simulated acceptance by depth; one line per validation.
Called by the training commands and the demo."""

import sys
from collections.abc import Callable
from pathlib import Path
from shlex import quote
from typing import Any, TypeVar

from mtpd_mlx.checkpoints.run_files import resume_points
from mtpd_mlx.train.interrupt import Interrupted

T = TypeVar("T")
BLOCKS = " ▁▂▃▄▅▆▇█"


class ProgressBar:
    """On a terminal two lines that stay: speed and losses; below, how many drafts would be accepted now, by depth. Elsewhere
    one line per report."""

    def __init__(self, iters: int, command: str = "train", visible: bool = True):
        from tqdm import tqdm

        self.command, self._visible, self._iters = command, visible, iters
        self._drawn = visible and sys.stderr.isatty()
        self._bar = tqdm(total=iters, unit="step", dynamic_ncols=True, disable=not self._drawn)
        self._depths = tqdm(total=0, bar_format="{desc}", position=1, dynamic_ncols=True, disable=not self._drawn)

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def guard(self, out: str, work: Callable[[], T]) -> T:
        """What `work` returns; where Ctrl-C ends it, how to continue is said."""
        try:
            return work()
        except KeyboardInterrupt as stop:
            self.close()
            # A signal may also end a rank outside the loop, or while it saves: an earlier resume point is there all the same.
            if self._visible and (stop.resumable if isinstance(stop, Interrupted) else resume_points(Path(out))):
                print(f"interrupted; continue with: mtpd {self.command} --resume --out {quote(out)}", flush=True)
            raise

    def close(self) -> None:
        self._depths.close()
        self._bar.close()

    def show(self, record: dict[str, Any]) -> None:
        if self._drawn:
            self._bar.update(record["iter"] - self._bar.n)
        if "valid" in record:
            valid = record["valid"]
            car = " ".join(f"{c:.3f}" for c in valid["car"])
            kept = "  (best so far, saved)" if record.get("saved") else ""
            line = f"step {record['iter']}: valid main loss {valid['main_loss']:.4f}  tau {valid['tau']:.3f}  CAR {car}{kept}"
            self._bar.write(line)
            sys.stdout.flush()
            return
        heads = "/".join(f"{x:.2f}" for x in record["head_loss"])
        skipped = f" skipped {record['skipped_steps']}" if record["skipped_steps"] else ""
        losses = f"main {record['main_loss']:.3f} heads {heads} tau {record['tau']:.2f}"
        line = f"{losses} {record['tokens_per_second']:.0f} tok/s{skipped}"
        if not self._drawn:
            print(f"step {record['iter']}/{self._iters}: {line}", file=sys.stderr, flush=True)
            return
        self._bar.set_postfix_str(line)
        self._depths.set_description_str(f"CAR by depth {depths(record['car'])}")


def depths(car: list[float]) -> str:
    """A column and the figure for each depth: "█ .97  ▆ .74"."""
    levels = [round(8 * c) if 0 <= c <= 1 else 0 for c in car]  # a skipped step has no figures
    return "  ".join(f"{BLOCKS[n]} {c:.2f}".replace(" 0.", " .") for n, c in zip(levels, car, strict=True))
