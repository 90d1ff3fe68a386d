#!/usr/bin/env python3
"""CE against MTP-D on one frozen base: the same steps, the same time, and the base's own text as data.

    python -m tools.experiments.prepare SOURCE DATA
    python -m tools.experiments.equal_time llama-30m DATA OUT --seconds 45 --set base_steps=9000

The arms of run.py's frozen part, but with as many steps as fit in --seconds at an arm's own median step time, measured before.
What is done is not done again; OUT/results.json grows arm by arm. Run it from the repository root.
"""

import argparse
import json
import statistics
import time
from dataclasses import replace
from pathlib import Path

from mtpd_mlx.files.atomic import write_json
from mtpd_mlx.losses.objective import Model
from mtpd_mlx.model.base import load_base
from mtpd_mlx.model.heads import init_heads
from mtpd_mlx.model.runtime import bound_queue
from mtpd_mlx.options.train import LossConfig, OptimConfig
from mtpd_mlx.train.step import Stepper, compute_dtype
from tools.experiments.arms import Arm, all_arms
from tools.experiments.clock import Clock
from tools.experiments.data import Text, load_text
from tools.experiments.run import Measurer, Results, line
from tools.experiments.settings import SETTINGS, Setting, setting
from tools.experiments.train_arm import base_folder, ensure_trained

TIMES_NAME = "step_seconds.json"
# (arm of run.py, name here, the loss whose step time decides)
ARMS = [
    ("frozen-ce.s0", "ce", "ce"),
    ("frozen-mtpd.s0", "mtpd", "mtpd"),
    ("frozen-mtpd.s0", "mtpd-steps-of-ce", "ce"),
    ("frozen-mtpd-own.s0", "mtpd-own", "mtpd"),
    ("frozen-ce-own.s0", "ce-own", "ce"),
    ("frozen-kl.s0", "kl", "kl"),
]


def step_seconds(loss: LossConfig, folder: Path, text: Text, s: Setting, count: int) -> float:
    """Median time of a step of this loss, after warming up."""
    base = load_base(str(folder), dtype=compute_dtype(OptimConfig()))
    stepper = Stepper(Model(base, init_heads(base, 4, "postnorm", 0), joint=False), loss, OptimConfig(iters=100))
    times = []
    for i in range(4 + count):
        started = time.perf_counter()
        stepper.step([text.train_set(s, 0).batch(i)])
        times.append(time.perf_counter() - started)
    return statistics.median(times[4:])


def timed_arms(known: dict[str, Arm], text: Text, s: Setting, out: Path, args: argparse.Namespace) -> list[Arm]:
    """The arms with the steps of their time; the step times are measured once and kept in OUT."""
    file = out / TIMES_NAME
    if not file.exists():
        losses = {key: known[f"frozen-{key}.s0"] for key in ("ce", "mtpd", "kl")}
        folder = base_folder(losses["ce"], known, out)
        write_json(file, {key: step_seconds(arm.loss, folder, text, s, args.calibration) for key, arm in losses.items()})
    times = json.loads(file.read_text())
    print(f"seconds per step: {times}", flush=True)
    return [replace(known[key], name=name, steps=int(args.seconds / times[clock])) for key, name, clock in ARMS]


def main() -> None:
    bound_queue()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("setting", choices=list(SETTINGS))
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seconds", type=float, default=45, help="of training per arm")
    parser.add_argument("--calibration", type=int, default=30, help="steps that a step time is the median of")
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="change the setting")
    args = parser.parse_args()
    s = setting(args.setting, args.set)
    text, clock = load_text(args.data, s), Clock(None)
    known = {arm.key: arm for arm in all_arms(s)}
    results, measurer = Results(args.out, args.setting, s, text), Measurer(text, s)
    ensure_trained(known["base.s0"], known, text, s, args.out, clock)
    for arm in timed_arms(known, text, s, args.out, args):
        if arm not in results:
            ensure_trained(arm, known, text, s, args.out, clock)
            results.add(arm, measurer.entry(arm, known, args.out))
        print(line(arm, results.content["arms"][arm.key]), flush=True)


if __name__ == "__main__":
    main()
