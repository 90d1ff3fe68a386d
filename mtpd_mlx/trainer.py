"""The training loop: steps, reports, validation, best-keeping, resume points."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mtpd_mlx.config import OptimConfig, RunConfig
from mtpd_mlx.data.packing import Batch
from mtpd_mlx.objective import Model
from mtpd_mlx.resume import ResumePoint, latest_resume_point, load_resume_point, save_resume_point
from mtpd_mlx.train_step import Stepper

LOG_NAME = "train_log.jsonl"


class Batches(Protocol):
    """What the loop needs of a dataset: `batch(step)` is a pure function, so resuming needs no iterator state."""

    def batch(self, step: int) -> Batch: ...


@dataclass(frozen=True)
class Evaluation:
    """Teacher-forced figures on validation text. car[k-1]: depths 1..k all agree with the main head."""

    main_loss: float
    head_loss: list[float]
    car: list[float]

    @property
    def ar(self) -> list[float]:
        return [c / p if p > 0 else 0.0 for c, p in zip(self.car, [1.0, *self.car], strict=False)]

    @property
    def tau(self) -> float:
        return 1.0 + sum(self.car)

    def to_dict(self) -> dict[str, Any]:
        return {
            "main_loss": self.main_loss,
            "head_loss": self.head_loss,
            "car": self.car,
            "ar": self.ar,
            "tau": self.tau,
        }


def evaluate(stepper: Stepper, rows: list[Batch]) -> Evaluation:
    """Averages over all counted positions of `rows`."""
    num_heads, first = stepper.model.heads.num_heads, stepper.model.first_trained
    parts = [stepper.evaluate(batch) for batch in rows]
    sums = np.stack([p[0] for p in parts]).sum(axis=0, dtype=np.float64)
    counts = np.maximum(np.stack([p[1] for p in parts]).sum(axis=0), 1)
    trained = num_heads - first
    head_loss = sums[1 : 1 + trained] / counts[1 + first :]
    return Evaluation(float(sums[0] / counts[0]), head_loss.tolist(), (sums[1 + trained :] / counts[num_heads]).tolist())


@dataclass
class Progress:
    """What a run knows about itself; stored in resume points."""

    iteration: int = 0
    best: list[float] | None = None  # what is maximised: tau, then minus the loss; in joint mode minus the main loss
    best_iteration: int | None = None
    start: dict[str, Any] | None = None
    seconds: float = 0.0
    skipped: int = 0  # steps whose gradient was not finite
    best_eval: dict[str, Any] = field(default_factory=dict)


class Run:
    """One training run. `save_best(progress)` writes the checkpoint that users load; it is called only when it is better
    than all before it, the start included (`save_start` writes the start too: an extension by copying is a result)."""

    def __init__(
        self,
        model: Model,
        stepper: Stepper,
        train: Batches,
        valid: list[Batch],
        optim_cfg: OptimConfig,
        run_cfg: RunConfig,
        save_best: Callable[[Progress], None],
        save_start: bool = False,
    ):
        self.model, self.stepper, self.train, self.valid = model, stepper, train, valid
        self.optim_cfg, self.cfg, self.save_best = optim_cfg, run_cfg, save_best
        self.world = stepper.world
        self.out = Path(run_cfg.out)
        self.progress = Progress()
        self.save_start = save_start
        self.curve: list[dict[str, Any]] = []

    def resume(self) -> None:
        """Continues at the newest resume point. Rank 0 reads it; the others need not see its folder."""
        arrays: list[ResumePoint] = []

        def read() -> dict[str, Any]:
            point = latest_resume_point(self.out)
            if point is None:
                raise ValueError(f"{self.out}: nothing to resume (no resume-* folder)")
            arrays.append(load_resume_point(self.out, point))
            self._truncate_log(point)
            return arrays[0].progress

        self.progress = Progress(**self.world.from_lead(read))
        if arrays:
            self.stepper.restore(arrays[0].params, arrays[0].optimizer)
        self.stepper.follow_lead()

    def run(self, show: Callable[[dict[str, Any]], None] = lambda record: None) -> Progress:
        """Trains to `iters`. On KeyboardInterrupt a resume point is written before the exception goes on."""
        progress = self.progress
        if progress.start is None:
            self._validate(show)
            if self.world.size > 1:
                self._save_point()  # a lost rank leaves no time to write one
        last_report, tokens, skipped_in_a_row = time.perf_counter(), 0, 0
        try:
            while progress.iteration < self.optim_cfg.iters:
                started = time.perf_counter()
                accumulation = self.optim_cfg.grad_accumulation_steps
                batches = [self.train.batch(progress.iteration * accumulation + j) for j in range(accumulation)]
                metrics, norm, counted = self.stepper.step(batches)
                progress.iteration += 1
                skipped_in_a_row = 0 if counted else skipped_in_a_row + 1
                progress.skipped += not counted
                progress.seconds += time.perf_counter() - started
                tokens += sum(b.tokens.size for b in batches)
                if self._due(self.cfg.steps_per_report):
                    now = time.perf_counter()
                    self._report(np.array(metrics), float(norm), tokens / (now - last_report), show)
                    last_report, tokens = now, 0
                if 0 < self.optim_cfg.max_skipped_steps <= skipped_in_a_row:
                    raise FloatingPointError
                if self._due(self.cfg.steps_per_eval):
                    self._validate(show)
                if self._due(self.cfg.save_every) and progress.iteration < self.optim_cfg.iters:
                    self._save_point()
        except KeyboardInterrupt:
            self._save_point()
            raise
        except FloatingPointError:
            self._save_point()
            raise ValueError(
                f"step {progress.iteration}: the gradient was not finite {skipped_in_a_row} times in a row; those steps "
                "changed nothing and a resume point is saved. Lower --learning-rate or check the data"
            ) from None
        self._save_point()
        self.stepper.sync()
        return progress

    def _due(self, every: int) -> bool:
        i = self.progress.iteration
        return i == self.optim_cfg.iters or (every > 0 and i % every == 0)

    def _report(self, metrics: np.ndarray, norm: float, speed: float, show: Callable) -> None:
        trained = self.model.heads.num_heads - self.model.first_trained
        car = metrics[1 + trained :].tolist()
        record = {
            "iter": self.progress.iteration,
            "main_loss": float(metrics[0]),
            "head_loss": metrics[1 : 1 + trained].tolist(),
            "loss": float(metrics[1 : 1 + trained].sum() + (metrics[0] if self.model.joint else 0.0)),
            "car": car,
            "tau": 1.0 + sum(car),
            "grad_norm": norm,
            "skipped_steps": self.progress.skipped,
            "learning_rate": float(self.stepper.optimizer.learning_rate),
            "tokens_per_second": speed,
            "seconds": self.progress.seconds,
        }
        self.curve.append(record)
        self._tell(record, show)

    def _validate(self, show: Callable) -> None:
        progress = self.progress
        result = evaluate(self.stepper, self.valid)
        score = [-result.main_loss] if self.model.joint else [result.tau, -sum(result.head_loss)]
        record = {"iter": progress.iteration, "valid": result.to_dict()}
        first = progress.start is None
        if first:
            progress.start = result.to_dict()
        if progress.best is None or score > progress.best:
            progress.best, progress.best_iteration, progress.best_eval = score, progress.iteration, result.to_dict()
            if not first or self.save_start:
                self.stepper.sync()
                if self.world.leads:
                    self.save_best(progress)
                record["saved"] = True
        self._tell(record, show)

    def _save_point(self) -> None:
        from mlx.utils import tree_flatten

        if not self.world.leads:
            return
        save_resume_point(
            self.out,
            ResumePoint(
                dict(tree_flatten(self.stepper.params)),
                dict(tree_flatten(self.stepper.optimizer.state)),
                dict(vars(self.progress)),
            ),
        )

    def _tell(self, record: dict[str, Any], show: Callable[[dict[str, Any]], None]) -> None:
        """To the log file and to whoever watches (rank 0 alone)."""
        if self.world.leads:
            with (self.out / LOG_NAME).open("a") as f:
                f.write(json.dumps(record) + "\n")
            show(record)

    def _truncate_log(self, iteration: int) -> None:
        """Drops what an interrupted run logged after its last resume point, half-written lines included."""
        file = self.out / LOG_NAME
        kept = []
        for line in file.read_text().splitlines() if file.is_file() else []:
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if record["iter"] <= iteration:
                kept.append(line)
                if "loss" in record:
                    self.curve.append(record)
        file.write_text("".join(f"{line}\n" for line in kept))
