#!/usr/bin/env python3
"""The experiments behind docs/results: bases, heads and their measurement, arm by arm, in calls of any length.

    python -m tools.experiments.prepare SOURCE DATA
    python -m tools.experiments.run llama-30m DATA OUT --part joint4 loops --seconds 500
    python -m tools.experiments.report docs/results

OUT/results.json grows arm by arm and is what docs/results keeps; OUT/arms holds the checkpoints. What is there already is not
done again, and a training cut off by --seconds or killed goes on from its last resume point: call it again. `--set` changes a
value of the setting (tools/experiments/settings.py has them all). Run it from the repository root.
"""

import argparse
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from mtpd_mlx.checkpoints.fingerprint import fingerprint_base
from mtpd_mlx.model.base import load_base
from mtpd_mlx.model.load_save import load_heads, versions
from mtpd_mlx.model.runtime import bound_queue, mx, on_cpu
from mtpd_mlx.options.schema import as_dict
from mtpd_mlx.options.train import OptimConfig
from mtpd_mlx.train.step import compute_dtype
from tools.experiments.arms import Arm, all_arms, parts, select
from tools.experiments.clock import Clock, OutOfTime
from tools.experiments.data import Text, load_text
from tools.experiments.measures import BaseMeasures
from tools.experiments.results_file import read_results, write_results
from tools.experiments.settings import SETTINGS, Setting, setting
from tools.experiments.train_arm import base_folder, ensure_trained, has_heads, is_trained, stored_figures

RESULTS_NAME = "results.json"


class Results:
    """OUT/results.json: the conditions, and one entry per arm and seed."""

    def __init__(self, out: Path, name: str, s: Setting, text: Text):
        self.file = out / RESULTS_NAME
        device = "cpu" if on_cpu() else mx.device_info()["device_name"]
        data = {"train_tokens": int(text.train.tokens.size), "vocab_size": text.vocab_size}
        conditions = {"setting": name, "options": asdict(s), "data": data, "device": device, "versions": versions()}
        self.content: dict[str, Any] = conditions | {"arms": {}}
        if self.file.exists():
            stored = read_results(self.file)
            for key in ("setting", "options", "data"):
                if stored[key] != conditions[key]:
                    raise ValueError(f"{self.file}: made with another {key}; use another folder or the same --set")
            self.content = stored

    def __contains__(self, arm: Arm) -> bool:
        return arm.key in self.content["arms"]

    def add(self, arm: Arm, entry: dict[str, Any]) -> None:
        self.content["arms"][arm.key] = entry
        self.file.parent.mkdir(parents=True, exist_ok=True)
        write_results(self.file, self.content)


class Measurer:
    """Keeps the measures of the last base, which arms in a row share."""

    def __init__(self, text: Text, s: Setting):
        self.text, self.s = text, s
        self._folder: Path | None = None
        self._measures: BaseMeasures | None = None

    def entry(self, arm: Arm, arms: dict[str, Arm], out: Path) -> dict[str, Any]:
        folder = base_folder(arm, arms, out)
        if self._measures is None or folder != self._folder:
            base = load_base(str(folder), dtype=compute_dtype(OptimConfig()))
            self._folder, self._measures = folder, BaseMeasures(base, self.text, self.s)
        entry = describe(arm) | {"base": fingerprint_base(folder), "train": stored_figures(arm, out)}
        entry["main"] = self._measures.losses
        if has_heads(arm, out):
            heads, _ = load_heads(out / "arms" / arm.key, self._measures.base)
            entry |= self._measures.of_heads(heads)
        return entry


def describe(arm: Arm) -> dict[str, Any]:
    return {f.name: getattr(arm, f.name) for f in fields(arm) if f.name != "loss"} | {"loss": as_dict(arm.loss)}


def line(arm: Arm, entry: dict[str, Any]) -> str:
    said = f"{arm.key}: main {entry['main']['all']['loss']:.4f}"
    if "greedy" in entry:
        r, t = entry["greedy"]["all"], entry["sampled"]["all"]
        said += f", tau {r['tau']:.3f} (new {r['novel']['tau']:.3f}, sampled {t['tau']:.3f}) CAR "
        said += " ".join(f"{c:.3f}" for c in r["car"])
    return said


def main(argv: list[str] | None = None) -> int:
    bound_queue()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("setting", choices=list(SETTINGS))
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--part", nargs="+", default=[], choices=parts(), help="only these parts, in this order (default: all)")
    parser.add_argument("--arms", nargs="+", default=[], help="only these arms of the parts, by name or by name.s<seed>")
    parser.add_argument("--seconds", type=float, help="stop after so long, to go on at the next call")
    parser.add_argument("--shared", action="store_true", help="other programs use this device: keep no step times")
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="change the setting")
    parser.add_argument("--list", action="store_true", help="only say what would be done")
    args = parser.parse_args(argv)
    clock = Clock(args.seconds)
    try:
        s = setting(args.setting, args.set)
        arms = all_arms(s)
        chosen = select(arms, args.part, args.arms)
        if args.list:
            print("\n".join(f"{a.part:10} {a.key:26} {a.mode:7} {a.num_heads:2} heads {a.steps:5} steps" for a in chosen))
            return 0
        text = load_text(args.data, s)
        results = Results(args.out, args.setting, s, text)
    except ValueError as error:
        parser.error(str(error))
    known, measurer = {arm.key: arm for arm in arms}, Measurer(text, s)
    try:
        for arm in chosen:
            if arm in results and (is_trained(arm, args.out) or not needed(arm, chosen, results)):
                continue
            ensure_trained(arm, known, text, s, args.out, clock)
            if arm not in results:
                entry = measurer.entry(arm, known, args.out)
                if args.shared and arm.steps:
                    entry["train"]["step_ms"] = None
                results.add(arm, entry)
            print(f"{clock.spent:.0f} s  {line(arm, results.content['arms'][arm.key])}", flush=True)
            clock.check()
    except OutOfTime:
        print(f"time is up after {clock.spent:.0f} s: call again to go on", flush=True)
        return 0
    print(f"done in {clock.spent:.0f} s", flush=True)
    return 0


def needed(arm: Arm, chosen: list[Arm], results: Results) -> bool:
    """Does an arm that is still to be done start from this one?"""
    return any(a.start == arm.key and (a not in results or needed(a, chosen, results)) for a in chosen)


if __name__ == "__main__":
    raise SystemExit(main())
