"""Figures derived from the JSON of runs. None stands for figures that were not measured.
Called by pages.py, paper.py and report.py."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tools.experiments.results_file import MAIN_DIGITS, is_results, rounded, unpacked

AIMS = {
    "car4_points": 5.0,
    "forced_points": 4.0,
    "main_loss_percent": 0.5,
    "sets": 6,
    "tau_ratio_8": 1.8,
    "tau_ratio_16": 2.0,
    "cost_share": 0.25,
    "tau_share": 0.95,
    "recipe_percent": 5.0,
}
SPEED_NAME = "speed.json"
ONE_HEAD = "joint1-ce"  # MTP with one head, what the paper's speeds are relative to
FIRST_RECIPE = "frozen-mtpd"  # MTP-D as reported (alpha .3, beta .5), AdamW
LATE, SAID_LATE = "mtpd-late", "distilled from half of the steps on"  # arms, and what they are
LATE_HEADS = "mtpd-late-heads"  # the same, and it reaches the heads alone
FREE, SAID_FREE = "nodetach", "the teacher not detached"
MEAN, SAID_MEAN = "mtpd-mean", "the teacher detached, mean over heads"
EMA, SAID_EMA = "mtpd-ema", "an average of the base (EMA) as teacher"
EMA_MEAN, SAID_EMA_MEAN = "mtpd-ema-mean", "the same, mean over heads"
FREE_MEAN, SAID_FREE_MEAN = "nodetach-mean", "the teacher not detached, mean over heads"
FIRST, SAID_FIRST = "mtpd", "the teacher detached, summed over heads"  # our first reading of the paper
WAYS = (  # other ways of joint MTP-D
    (LATE, SAID_LATE),
    (MEAN, SAID_MEAN),
    (EMA, SAID_EMA),
    (EMA_MEAN, SAID_EMA_MEAN),
    (FREE, SAID_FREE),
    (FREE_MEAN, SAID_FREE_MEAN),
)
ALL_WAYS = (FIRST, LATE_HEADS, *(of for of, _ in WAYS))
CE, CE_MEAN = "ce", "ce-mean"


@dataclass(frozen=True)
class Run:
    """One results file of tools/experiments/run.py."""

    name: str
    content: dict[str, Any]
    speed: list[dict[str, Any]] = field(default_factory=list)  # rows of speed.json about its arms

    @property
    def arms(self) -> dict[str, dict[str, Any]]:
        return self.content["arms"]

    def get(self, name: str, seed: int = 0) -> dict[str, Any] | None:
        return self.arms.get(f"{name}.s{seed}")

    def seeds(self, *names: str) -> list[int]:
        """The seeds of which all these arms are there."""
        every = [{e["seed"] for e in self.arms.values() if e["name"] == name} for name in names]
        return sorted(set.intersection(*every))


def read_speed(folder: Path) -> list[dict[str, Any]]:
    """Its speed.json, written by hand: columns (runtime, device, setting, arm, num_draft_tokens, temp, tau, plain and heads in
    tokens a second, conditions) and rows."""
    file = folder / SPEED_NAME
    if not file.exists():
        return []
    content = json.loads(file.read_text())
    return [dict(zip(content["columns"], row, strict=True)) for row in content["rows"]]


def read_runs(folder: Path) -> list[Run]:
    """Every JSON file of the folder that is a run's."""
    runs, speed = [], read_speed(folder)
    for file in sorted(folder.glob("*.json")):
        if is_results(stored := json.loads(file.read_text())):
            content = unpacked(stored)
            of_run = [row for row in speed if row["setting"] == content["setting"] and row["arm"] in content["arms"]]
            runs.append(Run(file.stem, content, of_run))
    return runs


def greedy(entry: dict[str, Any]) -> dict[str, Any]:
    return entry["greedy"]["all"]


def joint_effect(run: Run, heads: int, of: str = FIRST, against: str = CE) -> list[dict[str, Any]]:
    """MTP-D (`of`: its arm) against MTP, both joint, by seed: points of CAR at the last depth (all sets, each set; along
    held-out text where that was measured), percent of main loss."""
    effects = []
    for seed in run.seeds(f"joint{heads}-{against}", f"joint{heads}-{of}"):
        ce, mtpd = run.get(f"joint{heads}-{against}", seed), run.get(f"joint{heads}-{of}", seed)
        assert ce is not None and mtpd is not None
        by_set = {
            name: 100 * (mtpd["greedy"]["sets"][name]["car"][-1] - figures["car"][-1])
            for name, figures in ce["greedy"]["sets"].items()
        }
        effects.append(
            {
                "seed": seed,
                "car_points": 100 * (greedy(mtpd)["car"][-1] - greedy(ce)["car"][-1]),
                "ar_points": 100 * (greedy(mtpd)["ar"][-1] - greedy(ce)["ar"][-1]),
                "tau_change": greedy(mtpd)["tau"] - greedy(ce)["tau"],
                "sampled_tau_change": mtpd["sampled"]["all"]["tau"] - ce["sampled"]["all"]["tau"],
                "sets": by_set,
                "sets_ahead": sum(points > 0 for points in by_set.values()),
                "main_loss_percent": 100 * (mtpd["main"]["all"]["loss"] / ce["main"]["all"]["loss"] - 1),
            }
        )
        if "forced" in ce and "forced" in mtpd:
            effects[-1]["forced_points"] = 100 * (mtpd["forced"]["car"][-1] - ce["forced"]["car"][-1])
    return effects


def loop_depths(run: Run, of: str = FIRST) -> dict[int, list[tuple[float, float]]]:
    """By seed: (CAR of the loop from MTP-D heads (`of`: their arm), from CE heads) at depths 5..8, both trained."""
    names = f"joint4-{of}-loop8", "joint4-ce-loop8"
    depths = {}
    for seed in run.seeds(*names):
        mtpd, ce = (greedy(run.arms[f"{name}.s{seed}"])["car"][4:] for name in names)
        depths[seed] = list(zip(mtpd, ce, strict=True))
    return depths


def one_head_tau(run: Run) -> tuple[float, str] | None:
    """tau of one head trained with CE; without such an arm, of the first of four CE heads."""
    if (one := run.get(ONE_HEAD)) is not None:
        return greedy(one)["tau"], ONE_HEAD
    if (four := run.get("joint4-ce")) is not None:
        return 1 + greedy(four)["car"][0], "head 1 of joint4-ce"
    if (four := run.get("frozen-ce")) is not None:
        return 1 + greedy(four)["car"][0], "head 1 of frozen-ce"
    return None


def tau_ratios(run: Run) -> dict[str, float]:
    """tau of every arm of four heads or more over that of one head of MTP."""
    one = one_head_tau(run)
    if one is None:
        return {}
    return {key: greedy(e)["tau"] / one[0] for key, e in run.arms.items() if "greedy" in e and e["num_heads"] >= 4}


def speed_ratios(run: Run, key: str) -> list[tuple[str, float]]:
    """(runtime, greedy speed-up of an arm over plain decoding, over that of one head of MTP there), where both were timed."""

    def gains(of: str) -> dict[tuple[str, str], float]:
        rows = [r for r in run.speed if r["arm"] == of and r["temp"] == 0]
        return {(r["runtime"], r["device"]): r["heads"] / r["plain"] for r in rows}

    one = gains(f"{ONE_HEAD}.s0")
    return [(place[0], gain / one[place]) for place, gain in gains(key).items() if place in one]


def extension(run: Run, of: str = FIRST) -> dict[str, float | None] | None:
    """Of the extension to 8 heads (`of`: the arm of the four): its cost, steps and tau as shares of those of 8 heads from
    scratch. The cost is None where other programs ran beside one of the two; a step of the extension never costs more than one
    from scratch."""
    loop, scratch = run.get(f"joint4-{of}-loop8"), run.get(f"joint8-{of}")
    if loop is None or scratch is None:
        return None
    spent, budget = cost(loop), cost(scratch)
    return {
        "cost_share": spent / budget if spent and budget else None,
        "step_share": loop["steps"] / scratch["steps"],
        "tau_share": greedy(loop)["tau"] / greedy(scratch)["tau"],
    }


def cost(entry: dict[str, Any]) -> float | None:
    """Seconds of training by the median step time: compilation left out. None: other programs ran beside (run.py --shared)."""
    step_ms = entry["train"]["step_ms"]
    return None if step_ms is None else entry["steps"] * step_ms / 1e3


def best_recipe(run: Run) -> dict[str, Any] | None:
    """The frozen arm of highest mean tau over its seeds, against FIRST_RECIPE on the same base at the same steps."""
    first = run.get(FIRST_RECIPE)
    if first is None:
        return None
    rivals: dict[str, list[float]] = {}
    for entry in run.arms.values():
        if entry["mode"] == "frozen" and (entry["steps"], entry["base"]) == (first["steps"], first["base"]):
            rivals.setdefault(entry["name"], []).append(greedy(entry)["tau"])
    means = {name: sum(taus) / len(taus) for name, taus in rivals.items()}
    best = max(means, key=means.__getitem__)
    return {"name": best, "tau": means[best], "percent": 100 * (means[best] / means[FIRST_RECIPE] - 1), "all": means}


def joint_recipe(run: Run) -> list[float]:
    """tau of four heads whose teacher is not detached above that of our first reading, both trained jointly, in percent, by
    seed."""
    ours, first = f"joint4-{FREE}", f"joint4-{FIRST}"
    taus = [[greedy(run.arms[f"{name}.s{seed}"])["tau"] for name in (ours, first)] for seed in run.seeds(ours, first)]
    return [100 * (tau / of_first - 1) for tau, of_first in taus]


def summary(runs: list[Run]) -> dict[str, Any]:
    """docs/results/summary.json, rounded."""
    return {run.name: rounded(summary_of(run)) | {"main_loss": main_losses(run)} for run in runs}


def main_losses(run: Run) -> dict[str, Any]:
    return {key: rounded(e["main"]["all"], MAIN_DIGITS) for key, e in run.arms.items()}


def summary_of(run: Run) -> dict[str, Any]:
    measured = {key: entry for key, entry in run.arms.items() if "greedy" in entry}
    return {
        "setting": run.content["setting"],
        "device": run.content["device"],
        "car": {
            key: {"all": greedy(e)["car"]} | {name: s["car"] for name, s in e["greedy"]["sets"].items()}
            for key, e in measured.items()
        },
        "tau": {key: greedy(e)["tau"] for key, e in measured.items()},
        "sampled_tau": {key: e["sampled"]["all"]["tau"] for key, e in measured.items()},
        "tau_over_one_head": tau_ratios(run),
        "costs": {
            key: {"seconds": cost(e), "step_ms": e["train"]["step_ms"], "peak_gb": e["train"]["peak_gb"]}
            for key, e in run.arms.items()
            if e["steps"]
        },
        "joint_effect": {
            str(heads): {of: effects for of in ALL_WAYS if (effects := joint_effect(run, heads, of))} for heads in (1, 4)
        },
        "forced_car": {key: e["forced"]["car"] for key, e in run.arms.items() if "forced" in e},
        "loop_car_5_to_8": {of: depths for of in ALL_WAYS if (depths := loop_depths(run, of))},
        "extension": {of: shares for of in ("ce", *ALL_WAYS) if (shares := extension(run, of)) is not None},
        "best_recipe": best_recipe(run),
        "joint_recipe_percent": joint_recipe(run),
    }
