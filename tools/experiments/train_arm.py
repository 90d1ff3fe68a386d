"""One arm trained into a checkpoint folder, or taken up where an interrupted call stopped.
Called by run.py and equal_time.py."""

import json
import shutil
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

from mtpd_mlx.checkpoints.format import CONFIG_NAME, CheckpointConfig
from mtpd_mlx.checkpoints.run_files import RESUME_PREFIX
from mtpd_mlx.data.dataset import MixedDataset
from mtpd_mlx.files.atomic import write_json
from mtpd_mlx.files.publish import publish, stage_folder
from mtpd_mlx.losses.objective import Model
from mtpd_mlx.model.base import Base, load_base
from mtpd_mlx.model.heads import MTPHeads, init_heads
from mtpd_mlx.model.load_save import load_heads, reference_base, save_heads, versions, write_base
from mtpd_mlx.model.new_base import new_base
from mtpd_mlx.model.runtime import mx
from mtpd_mlx.options.schema import as_dict
from mtpd_mlx.options.train import OptimConfig, RunConfig
from mtpd_mlx.train.extend import loop_heads
from mtpd_mlx.train.loop import LOG_NAME, Batches, Run
from mtpd_mlx.train.resume_point import latest_resume_point
from mtpd_mlx.train.step import Stepper, compute_dtype
from tools.experiments.arms import Arm
from tools.experiments.clock import Clock
from tools.experiments.data import Text
from tools.experiments.own_text import own_rows, own_set
from tools.experiments.settings import BASES, Setting

TRAIN_NAME = "train.json"
GIGABYTE = 1e9


def base_folder(arm: Arm, arms: dict[str, Arm], out: Path) -> Path:
    """Where the base of an arm lies: with the arm that trained it."""
    while arm.start is not None:
        arm = arms[arm.start]
    return out / "arms" / arm.key / "base"


def is_trained(arm: Arm, out: Path) -> bool:
    return (out / "arms" / arm.key / TRAIN_NAME).exists()


def ensure_trained(arm: Arm, arms: dict[str, Arm], text: Text, s: Setting, out: Path, clock: Clock) -> None:
    """OUT/arms/KEY: heads as any checkpoint of this project, base/ where the arm trains one, train.json with the figures."""
    if is_trained(arm, out):
        return
    if arm.start is not None:
        ensure_trained(arms[arm.start], arms, text, s, out, clock)
    folder = out / "arms" / arm.key
    folder.mkdir(parents=True, exist_ok=True)
    base, heads, first = ingredients(arm, arms, text, s, out)
    figures: dict[str, Any] = {"steps": arm.steps}
    if arm.steps:
        data = training_data(arm, base, text, s, base_folder(arm, arms, out), clock)
        figures |= train(arm, base, heads, first, data, text, s, folder, clock)
    save(arm, base, heads, text, folder, base_folder(arm, arms, out))
    write_json(folder / TRAIN_NAME, figures)
    for point in folder.glob(f"{RESUME_PREFIX}*"):
        shutil.rmtree(point)


def ingredients(arm: Arm, arms: dict[str, Arm], text: Text, s: Setting, out: Path) -> tuple[Base, MTPHeads, int]:
    """(base, heads, how many of them stay as they are) at the start of the arm."""
    if arm.start is None:
        base = new_base(BASES[s.base] | {"vocab_size": text.vocab_size}, arm.seed)
        heads = init_heads(base, max(arm.num_heads, 1), arm.hidden_source, arm.seed)
        if arm.num_heads == 0:
            heads.heads = []
        return base, heads, 0
    base = load_base(str(base_folder(arm, arms, out)), dtype=compute_dtype(OptimConfig()))
    if arm.mode == "frozen":
        return base, init_heads(base, arm.num_heads, arm.hidden_source, arm.seed), 0
    old, _ = load_heads(out / "arms" / arm.start, base)
    return base, loop_heads(base, old, arm.num_heads), old.num_heads


def training_data(arm: Arm, base: Base, text: Text, s: Setting, base_at: Path, clock: Clock) -> Batches:
    corpus = text.train_set(s, arm.seed)
    if arm.text == "corpus":
        return corpus
    rows = own_rows(base, text.train, base_at.parent / "own", s, clock, arm.own_factor, arm.own_temp)
    return MixedDataset([corpus, own_set(rows, s, arm.seed)], (1.0 - arm.own_share, arm.own_share))


def rate(arm: Arm, s: Setting) -> float:
    of_mode = {"base": s.joint_rate, "joint": s.joint_rate, "frozen": s.heads_rate, "loop": s.loop_rate}
    return arm.rate_factor * of_mode[arm.mode]


def train(
    arm: Arm, base: Base, heads: MTPHeads, first: int, data: Batches, text: Text, s: Setting, folder: Path, clock: Clock
) -> dict[str, Any]:  # fmt: skip
    """Leaves the parameters of the last step in base and heads; OutOfTime after a resume point where time is up."""
    optim = OptimConfig(
        iters=arm.steps, optimizer=arm.optimizer, learning_rate=rate(arm, s), min_lr_ratio=arm.min_lr_ratio, warmup=s.warmup
    )
    model = Model(base, heads, arm.mode in ("base", "joint"), first)
    stepper = Stepper(model, arm.loss, optim)
    cfg = RunConfig(str(folder), seed=arm.seed, steps_per_report=s.report_every, steps_per_eval=0, save_every=s.save_every)
    run = Run(model, stepper, data, text.valid_batches(s), optim, cfg, save_best=lambda progress: None)
    if latest_resume_point(folder) is not None:
        run.resume()
    else:
        (folder / LOG_NAME).unlink(missing_ok=True)  # of a call killed before its first resume point
    mx.reset_peak_memory()

    def show(record: dict[str, Any]) -> None:
        if "tokens_per_second" in record:
            record["peak_gb"] = mx.get_peak_memory() / GIGABYTE
            print(
                f"  {arm.key} {record['iter']}/{arm.steps} main {record['main_loss']:.3f} tau {record['tau']:.3f}", flush=True
            )
        if record["iter"] < arm.steps:
            clock.check()

    if run.progress.iteration < arm.steps or run.progress.start is None:
        run.run(show)
    stepper.sync()
    reports = run.curve
    steady = [r["tokens_per_second"] for r in reports[1:]] or [r["tokens_per_second"] for r in reports]
    return {
        "seconds": run.progress.seconds,
        "step_ms": 1e3 * s.batch_size * s.length / statistics.median(steady),
        "peak_gb": max((r["peak_gb"] for r in reports if "peak_gb" in r), default=None),
        "skipped_steps": run.progress.skipped,
        "start": run.progress.start,
        "curve": [{k: r[k] for k in ("iter", "main_loss", "head_loss", "tau")} for r in reports],
        "options": as_dict(optim),
    }


def save(arm: Arm, base: Base, heads: MTPHeads, text: Text, folder: Path, base_at: Path) -> None:
    """The base in the dtype it was computed in; heads in float32, so that they can be trained on."""
    if arm.mode in ("base", "joint"):
        base.model.set_dtype(compute_dtype(OptimConfig()))
        config = base.config | {"torch_dtype": str(base.dtype).rpartition(".")[2]}
        trained = replace(base, config=config)
        stage_folder(folder / "base", lambda new: write_base(new, trained, text.tokenizer_folder))
        publish(folder, ["base"])
    if heads.num_heads == 0:
        return
    reference = reference_base(replace(base, path=base_at), folder, str(base_at))
    record = {"loss": as_dict(arm.loss), "training": {"arm": arm.key, "steps": arm.steps}, "versions": versions()}
    save_heads(folder, heads, CheckpointConfig(heads.num_heads, heads.hidden_source, reference, None, record))


def stored_figures(arm: Arm, out: Path) -> dict[str, Any]:
    return json.loads((out / "arms" / arm.key / TRAIN_NAME).read_text())


def has_heads(arm: Arm, out: Path) -> bool:
    return (out / "arms" / arm.key / CONFIG_NAME).exists()
