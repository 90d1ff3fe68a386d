"""The tables of docs/results.md in Markdown. "not measured" stands if a run has no such arm.
Called by report.py and real_heads.py."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from tools.experiments.findings import (
    AIMS,
    CE,
    CE_MEAN,
    FIRST,
    FIRST_RECIPE,
    FREE,
    LATE,
    LATE_HEADS,
    SAID_FIRST,
    SAID_FREE,
    SAID_LATE,
    WAYS,
    Run,
    best_recipe,
    extension,
    greedy,
    joint_effect,
    joint_recipe,
    loop_depths,
    one_head_tau,
    tau_ratios,
)
from tools.experiments.paper import CLAIMS, SCALE

MISSING = "not measured"
PARTS = {
    "joint4": "Base and four heads from scratch",
    "joint1": "Base and one head from scratch",
    "late": "Four heads from scratch, distillation from half of the steps on",
    "late-loops": "Looped extension of those heads",
    "late-ways": "Other ways to begin distillation late",
    "loops": "Looped extension of jointly trained heads",
    "copies": "One head looped by copies alone",
    "scratch": "8 and 16 heads from scratch",
    "base": "A base alone",
    "frozen": "Losses on a frozen base",
    "own": "Half of the data the base's own text",
    "own-loops": "Looped extension of heads trained on own text",
    "ablations": "Ablations of joint MTP-D training",
    "free-loops": "Looped extension of heads whose teacher was not detached",
    "recipes": "Candidates for the recipe",
    "muon": "Base and four heads from scratch, by Muon",
    "teachers": "Mean over heads, and an average of the base as teacher",
}


def table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(headers)} |", f"|{'---|' * len(headers)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)]) + "\n"


def numbers(values: Iterable[float]) -> str:
    return " ".join(f"{v:.3f}".removeprefix("0") for v in values)


def tenths(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def aim(said: str | None, met: bool | None) -> tuple[str, str]:
    return (MISSING, "") if said is None else (said, "yes" if met else "no")


def joint_aims(title: str, effects: list[dict[str, Any]]) -> list[tuple[str, tuple[str, str]]]:
    """What joint MTP-D should do to acceptance and to the main head, by seed."""

    def row(said: str, name: str, form: str, good: Callable[[float], bool]) -> tuple[str, tuple[str, str]]:
        values = [e[name] for e in effects if name in e]
        return f"{title}: {said} (by seed)", aim(", ".join(format(v, form) for v in values) or None, all(map(good, values)))

    points, sets, percent = AIMS["car4_points"], AIMS["sets"], AIMS["main_loss_percent"]
    forced = AIMS["forced_points"]
    return [
        row(f"CAR_4 along held-out text above MTP by {forced:g} points", "forced_points", "+.1f", lambda v: v >= forced),
        row(f"CAR_4 of MTP-D above MTP by {points:g} points", "car_points", "+.1f", lambda v: v >= points),
        row(f"ahead on {sets} of 7 prompt sets", "sets_ahead", "d", lambda v: v >= sets),
        row(f"main loss no worse than +{percent:g}%", "main_loss_percent", "+.2f", lambda v: v <= percent),
    ]


def aims_table(run: Run) -> str:
    best = best_recipe(run)
    rows = joint_aims(f"joint, K = 4, {SAID_FIRST}", joint_effect(run, 4))
    others = (*WAYS, (LATE_HEADS, "distillation late, and it reaches the heads alone"))
    for of, title in others:
        if effects := joint_effect(run, 4, of):
            rows += joint_aims(f"joint, K = 4, {title}", effects)
        if of.endswith("-mean") and (effects := joint_effect(run, 4, of, CE_MEAN)):
            rows += joint_aims(f"joint, K = 4, {title}, against MTP with the mean over heads", effects)
    for of, note in ((FIRST, ""), *((of, f" ({said})") for of, said in WAYS)):
        rows += loop_aims(run, of, note)
    for of, note in (("ce", " of CE heads"), (FIRST, ""), (FREE, f" ({SAID_FREE})")):
        said, met = extension_said(extension(run, of))
        shares = f"{100 * AIMS['cost_share']:g}% of the cost, {100 * AIMS['tau_share']:g}% of the tau"
        rows.append((f"extension{note} to 8: {shares} of 8 heads from scratch", aim(said, met)))
    said = best and f"{best['name']}: {best['percent']:+.1f}% (tau {best['tau']:.3f})"
    rows.append(
        (
            f"best recipe above {FIRST_RECIPE} by {AIMS['recipe_percent']:g}% tau at equal steps",
            aim(said or None, best is not None and best["percent"] >= AIMS["recipe_percent"]),
        )
    )
    gains, percent = joint_recipe(run), AIMS["recipe_percent"]
    said = ", ".join(f"{gain:+.1f}" for gain in gains)
    wanted = f"joint, K = 4: {SAID_FREE} above the same detached by {percent:g}% tau at equal steps (by seed)"
    rows.append((wanted, aim(said or None, all(gain >= percent for gain in gains))))
    measured = [[name, *result] for name, result in rows if result[0] != MISSING]
    return table(["aim", "measured", "met"], measured) if measured else MISSING + "\n"


def loop_aims(run: Run, of: str, note: str) -> list[tuple[str, tuple[str, str]]]:
    """Of the loops from MTP-D heads (`of`: their arm): against those from CE heads, and against one head."""
    rows = []
    for seed, depths in loop_depths(run, of).items():
        said = ", ".join(f"{a:.3f} / {b:.3f}" for a, b in depths)
        wanted = f"CAR_5..8 looped from MTP-D heads{note} above looped from CE heads (seed {seed})"
        rows.append((wanted, aim(said, all(a > b for a, b in depths))))
    one, ratios = one_head_tau(run), tau_ratios(run)
    for count in (8, 16):
        name, want = f"joint4-{of}-loop{count}", AIMS[f"tau_ratio_{count}"]
        values = [ratios[f"{name}.s{seed}"] for seed in run.seeds(name)] if one else []
        said = ", ".join(f"{value:.3f}" for value in values) + f" (over {one[1]})" if one and values else None
        wanted = f"tau of {count} looped heads{note} over one head at least {want:g} (by seed)"
        rows.append((wanted, aim(said, min(values, default=0) >= want)))
    return rows


def extension_said(shares: dict[str, float | None] | None) -> tuple[str | None, bool]:
    """(in words, is the aim met); where times cannot be compared, steps stand for them."""
    if shares is None:
        return None, False
    cost, steps, tau = (shares[name] or 0.0 for name in ("cost_share", "step_share", "tau_share"))
    said = f"{100 * cost:.0f}% of the time" if cost else f"{100 * steps:.0f}% of the steps"
    return f"{said}, {100 * tau:.1f}% of tau", (cost or steps) <= AIMS["cost_share"] and tau >= AIMS["tau_share"]


def arms_table(entries: list[dict[str, Any]]) -> str:
    forced = any("forced" in e for e in entries)
    headers = [
        "arm",
        "seed",
        "steps",
        "tau",
        "tau, new 4-grams",
        "tau, T = 0.7",
        "distinct-4",
        "CAR",
        "AR",
        *(["CAR, held-out text"] if forced else []),
        "main loss",
        "bits/byte",
    ]
    rows = []
    for e in entries:
        main = [f"{e['main']['all']['loss']:.4f}", f"{e['main']['all']['bits_per_byte']:.4f}"]
        cost = [tenths(e["train"][name]) for name in ("step_ms", "peak_gb")] if e["steps"] else ["", ""]
        row = [e["name"], str(e["seed"]), str(e["steps"])]
        if "greedy" in e:
            g, t = greedy(e), e["sampled"]["all"]
            row += [f"{g['tau']:.3f}", f"{g['novel']['tau']:.3f}", f"{t['tau']:.3f}", f"{g['distinct4']:.3f}"]
            row += [numbers(g["car"]), numbers(g["ar"])]
        else:
            row += [""] * 6
        row += [numbers(e["forced"]["car"]) if "forced" in e else ""] if forced else []
        rows.append([*row, *main, *cost])
    return table([*headers, "ms/step", "peak GB"], rows)


def sureness_table(entries: list[dict[str, Any]]) -> str | None:
    """How sure the main head is and how right, on held-out text; None where no entry says it."""
    said = [(e["name"], str(e["seed"]), e["main"]["all"]) for e in entries if "entropy" in e["main"]["all"]]
    rows = [[name, seed, *(f"{m[k]:.4f}" for k in ("loss", "entropy", "accuracy"))] for name, seed, m in said]
    return table(["arm", "seed", "loss", "entropy", "accuracy"], rows) if rows else None


def sets_table(run: Run, names: Sequence[str], kind: str) -> str:
    """CAR at the last depth and tau by prompt set."""
    chosen = [e for name in names for seed in run.seeds(name) if (e := run.get(name, seed)) is not None]
    if not chosen:
        return MISSING + "\n"
    sets = list(chosen[0][kind]["sets"])
    rows = []
    for e in chosen:
        figures = [e[kind]["sets"][name] for name in sets]
        rows.append([e["name"], str(e["seed"]), *(f"{100 * f['car'][-1]:.1f} / {f['tau']:.2f}" for f in figures)])
    return table(["arm", "seed", *sets], rows)


def domains_table(run: Run, names: Sequence[str]) -> str:
    """Main loss by domain; every arm's first seed."""
    chosen = [(name, e) for name in names if (e := run.get(name)) is not None]
    if not chosen:
        return MISSING + "\n"
    domains = list(chosen[0][1]["main"])
    return table(
        ["domain", *(name for name, _ in chosen)], [[d, *(f"{e['main'][d]['loss']:.4f}" for _, e in chosen)] for d in domains]
    )


def paper_table(runs: list[Run]) -> str:
    rows = []
    for claim in CLAIMS:
        ours = [f"{run.name}: {said}" for run in runs if (said := claim.ours(run)) is not None]
        rows.append([claim.figure, claim.claimed, "<br>".join(ours) or MISSING, claim.why])
    return f"{SCALE}\n\n{table(['figure', 'claimed', 'ours', 'why it may differ'], rows)}"


def joint_table(runs: list[Run]) -> str:
    """Joint training of four heads, by seed: what the distillation term does to main loss, acceptance and variety."""
    rows = []
    for run in runs:
        for of, said in ((CE, "CE heads"), (FREE, f"{SAID_FREE} (the default)"), (FIRST, SAID_FIRST), (LATE, SAID_LATE)):
            entries = [
                e for seed in run.seeds(f"joint4-{CE}", f"joint4-{of}") if (e := run.get(f"joint4-{of}", seed)) is not None
            ]
            if not entries or run.get(f"joint4-{FREE}") is None:
                continue
            loss = "" if of == CE else ", ".join(f"{e['main_loss_percent']:+.1f}" for e in joint_effect(run, 4, of))
            greedily, sampled = [greedy(e) for e in entries], [e["sampled"]["all"] for e in entries]
            shown = [
                ", ".join(f"{g['car'][-1]:.3f}" for g in greedily),
                *(", ".join(f"{g['tau']:.2f}" for g in group) for group in (greedily, sampled)),
                ", ".join(f"{g['distinct4']:.3f}" for g in greedily),
            ]
            rows.append([run.name, said, loss, *shown])
    headers = ["run", "heads", "main loss against CE, %", "CAR at depth 4", "tau", "tau, T = 0.7", "distinct-4"]
    return table(headers, rows) if rows else MISSING + "\n"


def speed_table(speed: list[dict[str, Any]]) -> str:
    """Rows of docs/results/speed.json (findings.read_speed)."""
    if not speed:
        return MISSING + "\n"
    rows = []
    for r in speed:
        how = [str(r["num_draft_tokens"]), f"{r['temp']:g}", f"{r['tau']:.2f}"]
        figures = [f"{r['plain']:.0f}", f"{r['heads']:.0f}", f"{r['heads'] / r['plain']:.2f}", r["conditions"]]
        rows.append([r["runtime"], r["device"], r["setting"], r["arm"], *how, *figures])
    headers = ["runtime", "device", "setting", "arm", "K", "T", "tau", "plain, tokens/s", "with heads", "ratio", "conditions"]
    return table(headers, rows)
