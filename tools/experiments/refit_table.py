"""The table of a fine-tune's story, and which refit equals heads trained anew. Used by fine_tune.py and real_heads.py."""

from dataclasses import dataclass
from typing import Any

from tools.experiments.pages import numbers, table

ENOUGH = 0.95  # share of the best tau of heads trained anew
TIME = 0.2  # of their time
HEADS = ("heads", "steps", "seconds in steps", "main loss", "tau, held-out", "tau, own answers", "CAR", "distinct-4")
Figures = dict[str, Any]


@dataclass(frozen=True)
class Race:
    """Rows of the story: the best heads trained anew; those of the fewest steps with ENOUGH of that tau; the refit of the
    fewest steps with as much, or None; the best refit."""

    best: Figures
    first: Figures
    refit: Figures | None
    best_refit: Figures

    @property
    def share(self) -> float:
        """Of the best tau of heads trained anew, what the refit reaches."""
        return float((self.refit or self.best_refit)["tau"] / self.best["tau"])

    def time(self, of: Figures) -> float:
        """Seconds of the refit as a share of those of `of`."""
        return float((self.refit or self.best_refit)["seconds"] / of["seconds"])

    @property
    def met(self) -> bool:
        return self.refit is not None and self.time(self.best) <= TIME


def race(rows: list[Figures]) -> Race | None:
    """None where refits or heads trained anew are missing."""
    refits, anew = ([r for r in rows if r["key"].startswith(f"{kind}-")] for kind in ("refit", "anew"))
    if not refits or not anew:
        return None
    best = max(anew, key=lambda r: float(r["tau"]))

    def first(of: list[Figures]) -> Figures | None:
        return min((r for r in of if r["tau"] >= ENOUGH * best["tau"]), key=lambda r: int(r["steps"]), default=None)

    return Race(best, first(anew) or best, first(refits), max(refits, key=lambda r: float(r["tau"])))


def verdict(rows: list[Figures]) -> str:
    found = race(rows)
    if found is None:
        return ""
    best, first = found.best, found.first
    told = (
        f"Best of anew: tau {best['tau']:.3f} after {best['steps']} steps, {best['seconds']:.1f} s; {ENOUGH:.0%} of it first "
        f"after {first['steps']} steps, {first['seconds']:.1f} s. "
    )
    r = found.refit
    if r is None:
        return told + f"No refit reaches {ENOUGH:.0%} of it: at best {found.share:.0%}."
    met = "met" if found.met else "missed"
    return told + (
        f"Refit reaches {found.share:.0%} of it after {r['steps']} steps, {r['seconds']:.1f} s: {found.time(best):.0%} of "
        f"the time of the best, {found.time(first):.0%} of that of the first ({TIME:.0%} wanted: {met})."
    )


def story_table(rows: list[Figures]) -> str:
    def figure(value: float | None, form: str = ".3f") -> str:
        return "" if value is None else format(value, form)

    cells = []
    for r in rows:
        start = [r["label"], str(r.get("steps", "")), figure(r.get("seconds"), ".1f"), figure(r.get("main_loss"))]
        forced = r.get("forced", [None, None])[1]
        own = [f"**{r['tau']:.3f}**", numbers(r["car"]), f"{r['distinct4']:.3f}"]
        cells.append([*start, figure(forced), *own])
    return table(HEADS, cells)
