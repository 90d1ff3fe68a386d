"""One rank of bench_scaling: times training steps, or trains for a few and logs their losses.

    python -m tools.scaling.worker measure SPEC.json     # with the variables of tools/scaling/ranks.py
    python -m tools.scaling.worker losses SPEC.json

tools/scaling/ranks.py starts it from the repository root.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mtpd_mlx.data import Batch
from mtpd_mlx.losses.objective import Model, Tree
from mtpd_mlx.model.base import Base
from mtpd_mlx.model.heads import init_heads
from mtpd_mlx.model.new_base import new_base
from mtpd_mlx.model.runtime import bound_queue, mx, on_cpu
from mtpd_mlx.options.train import LossConfig, OptimConfig, RunConfig
from mtpd_mlx.ranks.watch import stop_clearly
from mtpd_mlx.ranks.world import World
from mtpd_mlx.text.messages import messages_on_stderr
from mtpd_mlx.train.loop import Run
from mtpd_mlx.train.resume_point import latest_resume_point
from mtpd_mlx.train.step import Stepper, compute_dtype
from tools.bench_train import text
from tools.experiments.settings import BASES

ISOLATED_REPEATS = 10


@dataclass(frozen=True)
class Spec:
    """What all ranks of one launch are told. rows: global batches by name. reduce: dtypes to sum gradients in, of which
    `losses` uses the first. stop: of `losses`, the step to interrupt before."""

    folder: str
    dims: str
    vocab: int
    num_heads: int
    length: int
    modes: list[str]
    rows: dict[str, int]
    steps: int
    warmup: int = 1
    compute: str = "auto"
    reduce: Sequence[str] = ("float32",)
    stop: int | None = None


class Silent(World):
    """A world whose ranks keep their gradients to themselves: the step without its all-reduce."""

    def sum(self, tree: Any, dtype: mx.Dtype | None = None, after: mx.array | None = None) -> Any:
        return tree


def make_model(spec: Spec, mode: str) -> Model:
    """Random weights: the same ones on every rank."""
    base: Base = new_base(BASES[spec.dims] | {"vocab_size": spec.vocab}, 0)
    if mode == "heads":  # a frozen base is held in the compute dtype, as `mtpd train` does
        base.model.set_dtype(compute_dtype(OptimConfig(compute_dtype=spec.compute)))
    return Model(base, init_heads(base, spec.num_heads, "postnorm", 0), mode == "joint")


@dataclass
class Arm:
    """One way to reduce gradients. All arms of a mode train the same parameters, so memory is that of one training run."""

    name: str
    world: World
    cfg: OptimConfig
    whole: Callable[..., tuple]
    seconds: dict[str, list[float]] = field(default_factory=dict)
    peak: dict[str, int] = field(default_factory=dict)

    def bind(self, stepper: Stepper) -> None:
        """Its compiled step reads the stepper's world and options when it is traced, at the first batch of a shape."""
        stepper.world, stepper.cfg, stepper._whole = self.world, self.cfg, self.whole


def make_arms(spec: Spec, stepper: Stepper, world: World) -> list[Arm]:
    kinds: dict[str, tuple[World, str]] = {"none": (Silent(world.rank, world.size, world.group), "float32")}
    if world.size > 1:
        kinds |= {dtype: (world, dtype) for dtype in spec.reduce}
    arms = []
    for name, (of, dtype) in kinds.items():
        stepper._compile()
        arms.append(Arm(name, of, replace(stepper.cfg, grad_reduce_dtype=dtype), stepper._whole))
    return arms


def meet(world: World) -> None:
    """All ranks go on from here together."""
    if world.size > 1:
        mx.eval(mx.distributed.all_sum(mx.array(1.0), group=world.group))


def time_steps(spec: Spec, stepper: Stepper, arms: list[Arm], world: World, say: Callable[[str], None]) -> None:
    """Seconds and peak bytes of every step by arm and global batch, interleaved."""
    for i in range(-spec.warmup, spec.steps):
        for name, rows in spec.rows.items():
            batch = text(spec.vocab, rows, spec.length, i + spec.warmup)
            for arm in arms:
                arm.bind(stepper)
                mx.reset_peak_memory()
                meet(world)
                start = time.perf_counter()
                stepper.step([batch])
                seconds = time.perf_counter() - start
                if i >= 0:
                    arm.seconds.setdefault(name, []).append(seconds)
                    arm.peak[name] = max(arm.peak.get(name, 0), mx.get_peak_memory())
                if i in (-spec.warmup, 0):
                    say(f"{name} {arm.name}: step {seconds:.3f} s" + (" (first)" if i < 0 else ""))


def time_reductions(params: Tree, world: World) -> dict[str, Any]:
    """The all-reduce of a gradient tree by itself: seconds of every repeat and bytes, by way."""
    ways = {
        "float32": (world, mx.float32, 4),
        "bfloat16": (world, mx.bfloat16, 2),
        "float32, array by array": (replace(world, bucket_bytes=0), mx.float32, 4),
    }
    from mlx.utils import tree_flatten, tree_map

    gradients = tree_map(mx.ones_like, params)
    size = sum(a.size for _, a in tree_flatten(gradients))
    figures = {}
    for name, (of, dtype, width) in ways.items():
        reduce = mx.compile(partial(of.sum, dtype=dtype))
        times = []
        for _ in range(2 + ISOLATED_REPEATS):
            mx.eval(gradients)
            meet(world)
            start = time.perf_counter()
            mx.eval(reduce(gradients))
            times.append(time.perf_counter() - start)
        figures[name] = {"bytes": size * width, "seconds": times[2:]}
    return figures


def measure(spec: Spec, world: World) -> dict[str, Any]:
    results: dict[str, Any] = {"device": "CPU" if on_cpu() else mx.device_info()["device_name"]}
    for mode in spec.modes:

        def say(line: str, mode: str = mode) -> None:
            if world.leads:
                print(f"  {world.size} ranks, {mode}: {line}", file=sys.stderr, flush=True)

        cfg = OptimConfig(iters=1000, warmup=0, compute_dtype=spec.compute)
        stepper = Stepper(make_model(spec, mode), LossConfig(), cfg, world)
        arms = make_arms(spec, stepper, world)
        time_steps(spec, stepper, arms, world, say)
        reductions = time_reductions(stepper.params, world) if world.size > 1 else {}
        steps = {a.name: {n: {"seconds": t, "peak": a.peak[n]} for n, t in a.seconds.items()} for a in arms}
        results[mode] = {"steps": steps, "all_reduce": reductions}
        del stepper, arms
        mx.clear_cache()
    return results


def counting(vocab: int, rows: int, length: int, seed: int) -> Batch:
    """Rows that count up in threes from random tokens: losses fall within a few steps, so that differences have to show."""
    start = np.random.default_rng(seed).integers(0, vocab, (rows, 1))
    tokens = ((start + 3 * np.arange(length)) % vocab).astype(np.int32)
    return Batch(tokens, np.ones_like(tokens), np.ones_like(tokens, dtype=bool))


@dataclass(frozen=True)
class Rows:
    """The training text of `losses`, by step alone."""

    spec: Spec

    def batch(self, step: int) -> Batch:
        if step == self.spec.stop:
            raise KeyboardInterrupt
        return counting(self.spec.vocab, self.spec.rows["batch"], self.spec.length, step)


def losses(spec: Spec, world: World) -> dict[str, Any]:
    """Trains each mode in SPEC.folder/MODE with the real loop, from its resume point where there is one; losses by step."""
    results: dict[str, Any] = {}
    for mode in spec.modes:
        out = Path(spec.folder) / mode
        optim = OptimConfig(
            spec.steps, learning_rate=2e-3, warmup=1, compute_dtype=spec.compute, grad_reduce_dtype=spec.reduce[0]
        )
        cfg = RunConfig(str(out), steps_per_report=1, steps_per_eval=0, save_every=0)
        model = make_model(spec, mode)
        valid = [counting(spec.vocab, spec.rows["batch"], spec.length, 10**6)]
        run = Run(model, Stepper(model, LossConfig(), optim, world), Rows(spec), valid, optim, cfg, lambda progress: None)
        out.mkdir(parents=True, exist_ok=True)
        if world.from_lead(lambda out=out: latest_resume_point(out)) is not None:
            run.resume()
        try:
            run.run()
        except KeyboardInterrupt:
            if spec.stop is None:
                raise
        results[mode] = [[r["iter"], r["main_loss"], *r["head_loss"]] for r in run.curve]
        results[f"{mode} points"] = sorted(p.name for p in out.glob("resume-*"))
    return results


def main() -> None:
    tasks = {"measure": measure, "losses": losses}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=list(tasks))
    parser.add_argument("spec", type=Path, help="JSON of a Spec")
    args = parser.parse_args()
    bound_queue()
    spec = Spec(**json.loads(args.spec.read_text()))
    world = World.launched()
    with messages_on_stderr(), stop_clearly(world, "the benchmark ends here"):
        results = tasks[args.task](spec, world)
    (Path(spec.folder) / f"rank-{world.rank}.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main()
