#!/usr/bin/env python3
"""Heads of SmolLM2-135M-Instruct: the figures of many arms in one file, and the section of docs/results.md made of it.

    python -m tools.experiments.real_heads SPEC docs/results/smollm2-135m.json

SPEC (JSON) holds the conditions, `groups` ({title, note, arms: [{key, label, file, ..}]}), `pairs` ({said, of, against}: keys),
`story` and `refits` ({title, note, rows of fine_tune.py's story.json}). `file` names the measurement of an arm: {greedy,
sampled: {all, sets: {name: figures}}}, alone or under one key; figures: tau, car, rounds, novel, distinct4, as
measure/evaluate.py gives them. An arm of which only a log is left has `means` in place of a file: {greedy, sampled:
{tau, novel, car}}, means over the sets. report.py calls `section`. On the disk a set is a row of results_file.pack_group, so
every share is exact. With --add SPEC holds more groups and pairs for the file that is there; what else it holds takes the
place of what was there.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from tools.experiments import refit_table
from tools.experiments.pages import aim, numbers, table
from tools.experiments.refit_table import race
from tools.experiments.results_file import KINDS, groups, pack_group, unpack_group, write_generated

FILE_NAME = "smollm2-135m.json"
MODULE = "tools.experiments.real_heads"
AIMS = (("four", "greedy", 3.0), ("eight", "greedy", 3.8), ("four", "sampled", 2.4))  # of the mean over sets
PAIR_PERCENT, PAIR_SETS = 10.0, 6
REFIT_PERCENT, REFIT_TIME = 95, 20
Figures = dict[str, Any]


def collect(spec: Figures, folder: Path) -> Figures:
    """SPEC with the figures of every arm in place of its file."""
    content = spec | {"groups": [g | {"arms": [with_figures(arm, folder) for arm in g["arms"]]} for g in spec["groups"]]}
    check_keys(content)
    return content


def check_keys(content: Figures) -> None:
    keys = [arm["key"] for g in content["groups"] for arm in g["arms"]]
    if twice := {key for key in keys if keys.count(key) > 1}:
        raise ValueError(f"arms: got {sorted(twice)} more than once, expected each key once")


def with_figures(arm: Figures, folder: Path) -> Figures:
    if "means" in arm:
        return arm
    measured = json.loads((folder / arm["file"]).read_text())
    if "greedy" not in measured:
        (measured,) = measured.values()
    kinds = {kind: groups(measured[kind], pack_group) for kind in KINDS if kind in measured}
    return {key: value for key, value in arm.items() if key != "file"} | kinds


def added(content: Figures, more: Figures) -> Figures:
    """`content` with the groups and pairs of `more` after its own, those of the same title or words in their places."""
    joined = content | {key: value for key, value in more.items() if key not in ("groups", "pairs")}
    for part, name in (("groups", "title"), ("pairs", "said")):
        fresh = {one[name]: one for one in more.get(part, [])}
        joined[part] = [fresh.pop(one[name], one) for one in content[part]] + list(fresh.values())
    check_keys(joined)
    return joined


def read(file: Path) -> Figures:
    """What `collect` gave, with tau, CAR and AR derived again."""
    content: Figures = json.loads(file.read_text())
    for group in content["groups"]:
        for arm in group["arms"]:
            arm |= {kind: groups(arm[kind], unpack_group) for kind in KINDS if kind in arm}
    return content


def taus(arm: Figures, kind: str = "greedy") -> dict[str, float]:
    """By prompt set; {} where not measured."""
    return {name: figures["tau"] for name, figures in arm[kind]["sets"].items()} if kind in arm else {}


def mean_of_sets(arm: Figures, kind: str, *names: str) -> float | None:
    """The mean over the prompt sets of a figure, `names` its path; None where not measured."""
    if kind in arm.get("means", {}):
        means: Figures = arm["means"][kind]
        return float(means[names[0]])  # "tau", or "novel" of ("novel", "tau")
    if kind not in arm:
        return None
    values = []
    for figures in arm[kind]["sets"].values():
        for name in names:
            figures = figures[name]
        values.append(figures)
    return float(np.mean(values))


def car(arm: Figures) -> list[float]:
    if "means" in arm:
        return [float(v) for v in arm["means"]["greedy"]["car"]]
    return [float(v) for v in np.mean([figures["car"] for figures in arm["greedy"]["sets"].values()], axis=0)]


def gain(of: Figures, against: Figures, kind: str) -> tuple[float, int] | None:
    """(percent of the mean tau, sets ahead) of one arm over another."""
    ours, theirs = taus(of, kind), taus(against, kind)
    if not ours or not theirs:
        return None
    ahead = sum(ours[name] > theirs[name] for name in theirs)
    return 100 * (sum(ours.values()) / sum(theirs.values()) - 1), ahead


def said(value: float | None, form: str = ".3f") -> str:
    return "" if value is None else format(value, form)


def arms_table(arms: list[Figures]) -> str:
    sets = list(taus(arms[0]))
    headers = ["heads", "seed", "steps", "tau", *sets, "new 4-grams", "tau, T = 0.7", "new 4-grams, T = 0.7", "CAR"]
    rows = []
    for arm in arms:
        of_sets = [f"{tau:.2f}" for tau in taus(arm).values()] or [""] * len(sets)
        tau, novel = mean_of_sets(arm, "greedy", "tau"), mean_of_sets(arm, "greedy", "novel", "tau")
        warm, warm_novel = mean_of_sets(arm, "sampled", "tau"), mean_of_sets(arm, "sampled", "novel", "tau")
        start = [arm["label"], str(arm["seed"]), str(arm["steps"]), f"**{said(tau)}**"]
        rows.append([*start, *of_sets, said(novel), said(warm), said(warm_novel), numbers(car(arm))])
    return table(headers, rows)


def pairs_table(content: Figures, arms: dict[str, Figures]) -> str:
    """By how much one arm is ahead of another, in percent of the mean tau and in prompt sets, by seed."""
    rows = []
    for pair in content["pairs"]:
        cells = []
        for kind in KINDS:
            gains = [gain(arms[of], arms[against], kind) for of, against in zip(pair["of"], pair["against"], strict=True)]
            cells.append(", ".join(f"{g[0]:+.1f}% ({g[1]} sets)" for g in gains if g is not None))
        rows.append([pair["said"], *cells])
    return table(["at equal steps (by seed)", "greedy", "T = 0.7"], rows)


def aims_table(content: Figures, arms: dict[str, Figures]) -> str:
    names, best, rows = {"four": "K = 4", "eight": "looped to 8"}, content["best"], []
    for which, kind, wanted in AIMS:
        tau = mean_of_sets(arms[best[which]], kind, "tau")
        heat = "greedy" if kind == "greedy" else "T = 0.7"
        wish = f"{names[which]}, {heat}: mean tau of the sets at least {wanted:g}"
        rows.append([wish, *aim(said(tau) or None, tau is not None and tau >= wanted)])
    for pair in (p for p in content["pairs"] if p.get("aim")):
        gains = [gain(arms[of], arms[a], "greedy") for of, a in zip(pair["of"], pair["against"], strict=True)]
        shown = ", ".join(f"{g[0]:+.1f}%, {g[1]} of 7 sets" for g in gains if g)
        met = all(g is not None and g[0] >= PAIR_PERCENT and g[1] >= PAIR_SETS for g in gains)
        rows.append([f"{pair['said']}: {PAIR_PERCENT:+g}% at equal steps, ahead on {PAIR_SETS} of 7 sets", *aim(shown, met)])
    story = {row["key"]: row for row in content["story"]["rows"]}
    share = 100 * story["refit"]["tau"] / story["anew"]["tau"]
    spent = {name: 100 * story["refit"][name] / story["anew"][name] for name in ("steps", "seconds")}
    met = share >= REFIT_PERCENT and spent["seconds"] <= REFIT_TIME
    wish = f"refit of a LoRA fine-tune: {REFIT_PERCENT}% of the tau of heads trained anew, in {REFIT_TIME}% of their time"
    shown = f"{share:.0f}% in {spent['seconds']:.0f}% of the time ({spent['steps']:.0f}% of the steps)"
    rows.append([wish, *aim(shown, met)])
    for one in content.get("refits", []):
        if found := race(one["rows"]):
            shown = f"{100 * found.share:.0f}% in {100 * found.time(found.best):.0f}% of the time"
            rows.append([f"the same, {one['title'][0].lower()}{one['title'][1:]}", *aim(shown, found.met)])
    return table(["aim", "measured", "met"], rows)


def story_table(story: Figures) -> str:
    rows = []
    for row in story["rows"]:
        start = [row["label"], str(row.get("steps", "")), said(row.get("seconds"), ".0f"), said(row.get("main_loss"))]
        rows.append([*start, f"**{row['tau']:.3f}**", numbers(row["car"]), said(row.get("own_tau"), ".2f")])
    return table(["heads", "steps", "seconds", "main loss", "tau, held-out dialogues", "CAR", "tau, its answers"], rows)


def section(file: Path) -> str:
    """The page of a model: aims, every group of arms, pairs of arms, the fine-tune."""
    content = read(file)
    arms = {arm["key"]: arm for group in content["groups"] for arm in group["arms"]}
    parts = [
        f"# {content['model']}\n\n[Results](../results.md) says what the columns are.\n\n{content['conditions']}\n",
        f"## Aims\n\n{aims_table(content, arms)}",
    ]
    for group in content["groups"]:
        parts.append(f"## {group['title']}\n\n{group['note']}\n\n{arms_table(group['arms'])}")
    parts.append(f"## Side by side\n\n{pairs_table(content, arms)}")
    story = content["story"]
    parts.append(f"## {story['title']}\n\n{story['note']}\n\n{story_table(story)}")
    for one in content.get("refits", []):
        tables = refit_table.story_table(one["rows"]), refit_table.verdict(one["rows"])
        parts.append("\n\n".join([f"## {one['title']}", one["note"], tables[0] + "\n" + tables[1] + "\n"]))
    return "\n".join(parts)


def front(file: Path, page: str) -> list[str]:
    """The three tables of a model that docs/results.md leads with; `page`: where the rest of them lies."""
    content = read(file)
    arms = {arm["key"]: arm for group in content["groups"] for arm in group["arms"]}
    first, story, model = content["groups"][0], content["story"], content["model"]
    rest = f"Conditions, aims and every other arm: [{Path(page).stem}]({page})."
    return [
        f"Tokens per pass of heads for {model}, by prompt set. {rest}\n\n{arms_table(first['arms'])}",
        f"Losses and optimisers for heads of {model} at equal steps: change of tau, by seed, and on how many of the "
        f"prompt sets it rose. {rest}\n\n{pairs_table(content, arms)}",
        f"Heads of {model} after the base was fine-tuned. {rest}\n\n{story_table(story)}",
    ]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("spec", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--add", action="store_true", help="to what OUT holds, in place of a new file")
    args = parser.parse_args(argv)
    spec: Figures = json.loads(args.spec.read_text())
    content = collect({"groups": []} | spec, args.spec.parent)
    if args.add:
        content = added(json.loads(args.out.read_text()), content if "groups" in spec else spec)
    write_generated(args.out, MODULE, content)


if __name__ == "__main__":
    main()
