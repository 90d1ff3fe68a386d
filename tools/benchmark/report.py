"""`figures`, `summary`: the figures of a benchmark by arm and set as JSON, and tables for a person.
Called by benchmark/__main__.py."""

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from mtpd_mlx.text.tables import format_table
from tools.benchmark.arms import Arm
from tools.benchmark.conditions import BUSY
from tools.benchmark.runs import Run

ALL = "all sets"
Figures = dict[str, Any]


def summary(runs: Sequence[Run], arms: Sequence[Arm], reference: str | None = None) -> Figures:
    """{"reference", "arms": {arm: {"all sets" | set: figures}}, "others_cores", "sessions"}. `reference`: the arm that all are
    held against besides their group's plain decoding (default: the first plain one)."""
    if reference is None:
        reference = next((arm.name for arm in arms if arm.plain), arms[0].name)
    if reference not in {arm.name for arm in arms}:
        raise ValueError(f"--reference: got {reference!r}, expected one of: {', '.join(arm.name for arm in arms)}")
    plain = {arm.group: arm.name for arm in reversed(arms) if arm.plain}
    by_arm: dict[str, dict[str, list[Run]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        by_arm[run["arm"]][run["set"]].append(run)
    found: dict[str, dict[str, Figures]] = {}
    for arm in arms:
        own = plain.get(arm.group, reference)
        texts = reference if own == arm.name else own  # a plain arm's texts are held against the reference's
        sets = {
            name: figures(mine, by_arm[own][name], by_arm[reference][name], by_arm[texts][name])
            for name, mine in by_arm[arm.name].items()
        }
        found[arm.name] = {ALL: over_sets(list(sets.values()))} | sets
    busy = [run["others_cores"] for run in runs if run.get("others_cores") is not None]
    return {
        "reference": reference,
        "arms": found,
        "others_cores": statistics.median(busy) if busy else None,
        "sessions": len({run["session"] for run in runs}),
    }


def figures(runs: list[Run], plain: list[Run], reference: list[Run], texts: list[Run]) -> Figures:
    """Of one arm on one set. Speeds and times are medians over the runs, ratios medians over pairs of runs of the same prompt
    and repeat in the same session; quartiles: of the speeds."""
    speeds = [speed(run) for run in runs]
    proposed = [p for run in runs for p in run.get("proposed", []) if p]
    accepted = [a for run in runs for a, p in zip(run.get("accepted", []), run.get("proposed", []), strict=True) if p]
    passes = [run["passes"] for run in runs if "passes" in run]
    decoded = sum(len(run["tokens"]) - 1 for run in runs)
    first = [run["prefill_seconds"] for run in runs]
    return {
        "runs": len(runs),
        "tok_s": statistics.median(speeds),
        "quartiles": quartiles(speeds),
        "over_plain": paired(runs, plain, speed),
        "over_reference": paired(runs, reference, speed),
        "tau": 1 + statistics.mean(accepted) if accepted else None,
        "drafts": statistics.mean(proposed) if proposed else None,
        "tokens_per_pass": decoded / sum(passes) if passes else None,
        "ttft_ms": 1000 * statistics.median(first),
        "ttft_over_reference": paired(runs, reference, lambda run: run["prefill_seconds"]),
        "memory_mb": max(run["memory"] for run in runs) / 1e6,
        "device_memory_mb": max((run["device_memory"] / 1e6 for run in runs if "device_memory" in run), default=None),
        "identical": same_texts(runs, texts),
    }


def speed(run: Run) -> float:
    """Tokens per second after the first one, which prefill brings."""
    return (len(run["tokens"]) - 1) / run["decode_seconds"]


def quartiles(values: list[float]) -> list[float]:
    if len(values) < 2:
        return [values[0], values[0]]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return [low, high]


def pairs(runs: list[Run], others: list[Run]) -> list[tuple[Run, Run]]:
    """Runs of the same prompt and repeat that were made in the same session."""
    known = {(run["prompt"], run["repeat"], run["session"]): run for run in others}
    return [(run, known[k]) for run in runs if (k := (run["prompt"], run["repeat"], run["session"])) in known]


def paired(runs: list[Run], others: list[Run], of: Callable[[Run], float]) -> float | None:
    """The median of the ratios; None where nothing can be paired."""
    ratios = [of(run) / of(other) for run, other in pairs(runs, others)]
    return statistics.median(ratios) if ratios else None


def same_texts(runs: list[Run], others: list[Run]) -> float | None:
    known = {(run["prompt"], run["repeat"]): run["tokens"] for run in others}
    same = [run["tokens"] == known[k] for run in runs if (k := (run["prompt"], run["repeat"])) in known]
    return sum(same) / len(same) if same else None


def over_sets(sets: list[Figures]) -> Figures:
    """Speeds, times and ratios: geometric means over the sets; tau and shares: means; memory: the largest."""
    means: dict[str, Callable[[list[float]], float]] = {"memory_mb": max, "device_memory_mb": max, "runs": sum}
    means |= dict.fromkeys(("tau", "drafts", "tokens_per_pass", "identical"), statistics.mean)
    whole: Figures = {}
    for name in sets[0]:
        values = [s[name] for s in sets if s[name] is not None]
        if name != "quartiles":
            whole[name] = means.get(name, geometric_mean)(values) if values else None
    return whole


def geometric_mean(values: list[float]) -> float:
    return math.exp(statistics.mean(map(math.log, values)))


def describe(found: Figures, conditions: Figures) -> str:
    """Conditions, the arms over all sets, and the sets by arm."""
    arms: dict[str, dict[str, Figures]] = found["arms"]
    reference = found["reference"]
    head = ["arm", "tokens/s", "over plain", f"over {reference}", "tau", "drafts", "TTFT ms", "MB", "same text"]
    rows = [
        [
            name,
            number(f["tok_s"], 1),
            *(number(f[k], 2) for k in ("over_plain", "over_reference", "tau", "drafts")),
            number(f["ttft_ms"], 0),
            number(f["device_memory_mb"] or f["memory_mb"], 0),
            share(f["identical"]),
        ]
        for name, f in ((name, sets[ALL]) for name, sets in arms.items())
    ]
    parts = [said(found, conditions), format_table(rows, head)]
    names = [name for name in next(iter(arms.values())) if name != ALL]
    for title, cell in TABLES.items():
        rows = [[arm, *(cell(sets[name]) if name in sets else "" for name in names)] for arm, sets in arms.items()]
        parts.append(format_table(rows, [title, *names]))
    return "\n\n".join(parts)


TABLES: dict[str, Callable[[Figures], str]] = {
    "tokens/s (quartiles)": lambda f: f"{f['tok_s']:.1f} ({f['quartiles'][0]:.1f}-{f['quartiles'][1]:.1f})",
    "over plain; tau": lambda f: f"{number(f['over_plain'], 2)}; {number(f['tau'], 2)}",
    "TTFT ms; MB": lambda f: f"{f['ttft_ms']:.0f}; {f['memory_mb']:.0f}",
}


def number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def share(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"


def said(found: Figures, conditions: Figures) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in conditions["versions"].items())
    options = conditions["options"]
    lines = [
        f"{conditions['machine']}; {versions}; commit {conditions['commit']}; {conditions['time']}",
        f"{options['limit']} prompts a set x {options['max_tokens']} tokens x {options['repeats']}, "
        f"temp {options['sampling'].get('temp', 0)}, threads {options['num_threads'] or 'of each own choice'}",
    ]
    busy = found["others_cores"]
    load = conditions["load_average"][0]
    if (busy is not None and busy > BUSY) or (busy is None and load > 1):
        used = f"others used {busy:.1f} cores" if busy is not None else f"load average {load:.1f} at the start"
        lines.append(f"warning: the machine was not idle ({used}): trust ratios, not times")
    if found["sessions"] > 1:
        lines.append(f"made in {found['sessions']} sessions: ratios are within a session, medians over all")
    return "\n".join(lines)
