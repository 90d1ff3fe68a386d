"""`Run`: the training loop (steps, reports, validation, best-keeping, resume points).
Called by train/run.py."""

import json
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mtpd_mlx.checkpoints.run_files import LOG_NAME
from mtpd_mlx.data.packing import Batch
from mtpd_mlx.files.atomic import write_text
from mtpd_mlx.losses.definitions import share_of_head
from mtpd_mlx.losses.objective import Model
from mtpd_mlx.options.signals import Terminated, number_of
from mtpd_mlx.options.train import OptimConfig, RunConfig, kept_by
from mtpd_mlx.speculative.finite import NotFiniteError
from mtpd_mlx.train.interrupt import Interrupted, deferred
from mtpd_mlx.train.resume_point import Progress, ResumePoint, latest_resume_point, load_resume_point, save_resume_point
from mtpd_mlx.train.step import Stepper


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

    @property
    def finite(self) -> bool:
        """Figures of NaN logits look good: NaN's argmax is the same for base and heads."""
        return bool(np.isfinite([self.main_loss, *self.head_loss]).all())

    def to_dict(self) -> dict[str, Any]:
        return {
            "main_loss": self.main_loss,
            "head_loss": self.head_loss,
            "car": self.car,
            "ar": self.ar,
            "tau": self.tau,
        }


def evaluate(stepper: Stepper, rows: list[Batch], check: Callable[[], None] = lambda: None) -> Evaluation:
    """Averages over all counted positions of `rows`; `check` is called between batches."""
    num_heads, first = stepper.model.heads.num_heads, stepper.model.first_trained
    parts = []
    for batch in rows:
        check()
        parts.append(stepper.evaluate(batch))
    sums = np.stack([p[0] for p in parts]).sum(axis=0, dtype=np.float64)
    counts = np.maximum(np.stack([p[1] for p in parts]).sum(axis=0), 1)
    trained = num_heads - first
    head_loss = sums[1 : 1 + trained] / counts[1 + first :]
    return Evaluation(float(sums[0] / counts[0]), head_loss.tolist(), (sums[1 + trained :] / counts[num_heads]).tolist())


def check_start(result: Evaluation) -> None:
    """NotFiniteError where the first validation shows that there is nothing to train, or to learn from."""
    if not np.isfinite(result.main_loss):
        raise NotFiniteError(
            f"the base's logits are not finite on the validation rows (main loss {result.main_loss}): its weights hold NaN or "
            "infinity, or its numbers do not fit their type; nothing was trained"
        )
    if not result.finite:
        depth = int(np.argmin(np.isfinite(result.head_loss))) + 1
        raise NotFiniteError(
            f"the logits of trained head {depth} are not finite on the validation rows (loss {result.head_loss[depth - 1]}): "
            "are the heads that training begins with whole? Nothing was trained"
        )


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
        self._check: Callable[[], None] = lambda: None  # raises a Ctrl-C that was noted
        self._stepping = False

    def resume(self) -> None:
        """Continues at the newest resume point. Rank 0 reads it; the others need not see its folder."""

        def read() -> dict[str, Any]:
            point = latest_resume_point(self.out)
            if point is None:
                raise ValueError(
                    f"{self.out}: nothing to resume (no resume-* folder); start the run again "
                    "without --resume, with --overwrite"
                )
            held = load_resume_point(self.out, point)
            parts = (held.params, held.optimizer, held.teacher)
            self.stepper.restore(*parts, str(self.out))  # here, so that all ranks hear of damage
            self._truncate_log(point)
            return vars(held.progress)

        self.progress = Progress(**self.world.from_lead(read))
        self.stepper.follow_lead()

    def run(self, show: Callable[[dict[str, Any]], None] = lambda record: None) -> Progress:
        """Trains to `iters`. Signals come out as Interrupted; they and faults leave a resume point where the state is known."""
        try:
            with deferred(self.world.size == 1) as self._check:
                self._loop(show)
        except KeyboardInterrupt as stop:
            resumable = self._leave_point()
            if type(stop) not in (KeyboardInterrupt, Terminated):  # a caller's own kind
                if not self._stepping:
                    self.stepper.sync()
                raise
            raise Interrupted(resumable, number_of(stop)) from None
        except (RuntimeError, ValueError, OSError) as error:
            if self.world.size > 1:
                raise
            if self.progress.iteration > 0 and not self._stepping:  # a step that failed may have left anything
                self._leave_point()
            if not isinstance(error, RuntimeError):
                raise
            point = latest_resume_point(self.out)
            how = "no resume point was written yet" if point is None else f"--resume goes on from step {point}"
            said = (str(error).strip() or type(error).__name__).splitlines()[0]  # MLX's own: memory, devices, kernels
            raise RuntimeError(f"after step {self.progress.iteration}: {said}; {how}") from error
        self.stepper.sync()
        return self.progress

    def _loop(self, show: Callable[[dict[str, Any]], None]) -> None:
        progress = self.progress
        first = progress.start is None
        if first or (progress.validated < progress.iteration and self._due(self.cfg.steps_per_eval)):
            self._validate(show)
        if first and self.world.size > 1:
            self._save_point()  # a lost rank leaves no time to write one
        last_report, tokens, skipped_in_a_row = time.perf_counter(), 0, 0
        while progress.iteration < self.optim_cfg.iters:
            self._check()
            started = time.perf_counter()
            accumulation = self.optim_cfg.grad_accumulation_steps
            batches = [self.train.batch(progress.iteration * accumulation + j) for j in range(accumulation)]
            self._stepping = True
            metrics, norm, counted = self.stepper.step(batches)
            progress.iteration += 1
            progress.skipped += not counted
            self._stepping = False
            skipped_in_a_row = 0 if counted else skipped_in_a_row + 1
            progress.seconds += time.perf_counter() - started
            tokens += sum(b.tokens.size for b in batches)
            if self._due(self.cfg.steps_per_report):
                now = time.perf_counter()
                self._report(np.array(metrics), float(norm), tokens / (now - last_report), show)
                last_report, tokens = now, 0
            if 0 < self.optim_cfg.max_skipped_steps <= skipped_in_a_row:
                self._save_point()
                raise ValueError(self._not_finite(skipped_in_a_row))
            if self._due(self.cfg.steps_per_eval):
                self._validate(show)
            if self._due(self.cfg.save_every) and progress.iteration < self.optim_cfg.iters:
                self._save_point()
        self._check()
        self._save_point()

    def _leave_point(self) -> bool:
        """Saves where the run stands; whether there is a resume point now. A step that was cut short either happened, with
        its counter, or did not: the optimiser knows."""
        with suppress(RuntimeError, ValueError, OSError):
            if self._stepping and self.world.leads:
                self.progress.iteration = int(self.stepper.optimizer.state["step"].item()) + self.progress.skipped
            if latest_resume_point(self.out) != self.progress.iteration:
                self._save_point()
        return latest_resume_point(self.out) is not None

    def _not_finite(self, times: int) -> str:
        kept = self.progress.best_iteration and not self.model.joint  # with what of the base trained, they cannot go on alone
        heads = f" (--init-heads {self.out}: from the heads kept so far)" if kept else ""
        return (
            f"step {self.progress.iteration}: the gradient was not finite {times} times in a row; those steps changed nothing. "
            f"--resume goes on with the data after them; where it happens again, check the data or begin anew{heads} with a "
            "lower --learning-rate"
        )

    def _due(self, every: int) -> bool:
        i = self.progress.iteration
        return i == self.optim_cfg.iters or (every > 0 and i % every == 0)

    def _report(self, metrics: np.ndarray, norm: float, speed: float, show: Callable[[dict[str, Any]], None]) -> None:
        trained = self.model.heads.num_heads - self.model.first_trained
        car = metrics[1 + trained :].tolist()
        share = share_of_head(self.stepper.loss_cfg, max(trained, 1))
        record = {
            "iter": self.progress.iteration,
            "main_loss": float(metrics[0]),
            "head_loss": metrics[1 : 1 + trained].tolist(),
            "loss": float(metrics[1 : 1 + trained].sum() * share + (metrics[0] if self.model.joint else 0.0)),
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

    def _validate(self, show: Callable[[dict[str, Any]], None]) -> None:
        progress = self.progress
        result = evaluate(self.stepper, self.valid, self._check)
        score = self._score(result)
        record = {"iter": progress.iteration, "valid": result.to_dict()}
        if progress.start is None:
            check_start(result)
        if result.finite and (progress.best is None or score > progress.best):
            start, found = progress.start or result.to_dict(), result.to_dict()
            better = replace(progress, best=score, best_iteration=progress.iteration, best_eval=found, start=start)
            if progress.start is not None or self.save_start:
                self.stepper.sync()
                if self.world.leads:
                    self.save_best(better)
                record["saved"] = True
            vars(progress).update(vars(better))  # once it is on disk
        progress.validated = progress.iteration
        self._tell(record, show)

    def _score(self, result: Evaluation) -> list[float]:
        """What --keep maximises."""
        if kept_by(self.cfg, self.model.joint) == "tau":
            return [result.tau, -sum(result.head_loss)]
        return [-result.main_loss] if self.model.joint else [-sum(result.head_loss)]

    def _save_point(self) -> None:
        from mlx.utils import tree_flatten

        if not self.world.leads:
            return
        save_resume_point(
            self.out,
            ResumePoint(
                dict(tree_flatten(self.stepper.params)),
                dict(tree_flatten(self.stepper.optimizer.state)),
                self.progress,
                dict(tree_flatten(self.stepper.teacher)),
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
        file, kept = self.out / LOG_NAME, []
        text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
        for line in text.splitlines():
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(record, dict) and type(record.get("iter")) is int and record["iter"] <= iteration:
                kept.append(line)
                if "loss" in record:
                    self.curve.append(record)
        write_text(file, "".join(f"{line}\n" for line in kept))
