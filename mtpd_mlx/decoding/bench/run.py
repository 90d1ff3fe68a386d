"""`measure`, `summary`, `describe`: arms over prompt sets, and their figures.
Called by `mtpd bench`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from mtpd_mlx.speculative.bench import Arm, identical, interleave
from mtpd_mlx.speculative.stats import acceptance_table, distinct_n
from mtpd_mlx.text.tables import format_table

Prompts = list[list[int]]


@dataclass
class Results:
    """All arms, and the runs of each prompt set: (set, first run, last run + 1, first and last + 1 counted round)."""

    arms: dict[str, Arm]
    sets: list[tuple[str, slice, slice]] = field(default_factory=list)

    @property
    def mtpd(self) -> Arm:
        return self.arms["mtpd"]


def measure(
    arms: Sequence[Arm], sets: dict[str, Prompts], max_tokens: int, repeats: int, cool_down: float, see: Callable[[], None]
) -> Results:
    """Every arm decodes every prompt of every set `repeats` times, interleaved."""
    results = Results({arm.name: arm for arm in arms})
    accepted, proposed, chosen = list[int](), list[int](), dict[str, list[int]]()
    for name, prompts in sets.items():
        runs, rounds = len(arms[0].runs), len(accepted)
        interleave(arms, prompts, max_tokens, repeats=repeats, cool_down=cool_down, see=see)  # starts the statistics anew
        if results.mtpd.stats is not None:
            accepted += results.mtpd.stats.accepted
            proposed += results.mtpd.stats.proposed
            for kind, (rounds_, tokens) in results.mtpd.stats.chosen.items():
                total = chosen.setdefault(kind, [0, 0])
                total[0], total[1] = total[0] + rounds_, total[1] + tokens
        results.sets.append((name, slice(runs, len(arms[0].runs)), slice(rounds, len(accepted))))
    if results.mtpd.stats is not None:
        stats = results.mtpd.stats
        stats.accepted, stats.proposed, stats.chosen = accepted, proposed, chosen
    return results


def summary(results: Results, greedy: bool) -> dict[str, Any]:
    """Medians over all runs, then set by set. speedup: against stock mlx_lm's plain decoding."""
    whole = slice(0, len(results.mtpd.runs))
    stats = results.mtpd.stats
    rounds = slice(0, len(stats.accepted) if stats else 0)
    values = figures(results, whole, rounds)
    if stats is not None:
        values["chosen"] = stats.to_dict()["chosen"]
    if greedy:
        names = [name for name in results.arms if name != "stock"]
        values["identical_to_stock"] = {name: identical(results.arms["stock"], results.arms[name]) for name in names}
    if "exact" in results.arms:
        values["exact_price"] = 1 - values["exact_tok_s"] / values["mtpd_tok_s"]
    values["sets"] = {name: figures(results, runs, counted) for name, runs, counted in results.sets}
    return values


KEYS = {"stock": "stock_plain", "plain": "plain", "stock speculative": "stock_speculative", "exact": "exact", "mtpd": "mtpd"}


def figures(results: Results, runs: slice, rounds: slice) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, arm in results.arms.items():
        part = Arm(name, arm.decode, runs=arm.runs[runs])
        values[f"{KEYS[name]}_tok_s"] = part.tokens_per_second
        values[f"{KEYS[name]}_ttft_ms"] = 1000 * part.prefill_seconds
        values[f"{KEYS[name]}_peak_memory_gb"] = arm.peak_memory / 1e9
    values["speedup"] = values["mtpd_tok_s"] / values["stock_plain_tok_s"]
    values["plain_over_stock"] = values["plain_tok_s"] / values["stock_plain_tok_s"]
    stats = results.mtpd.stats
    if stats is not None and stats.num_draft_tokens:
        table = acceptance_table(stats.accepted[rounds], stats.num_draft_tokens, stats.proposed[rounds])
        values |= {"tau": table.tau, "car": table.car, "ar": table.ar}
    else:
        values |= {"tau": 1.0, "car": [], "ar": []}
    texts = results.mtpd.runs[runs]
    values["distinct4"] = sum(distinct_n(run.tokens) for run in texts) / len(texts)
    return values


def describe(v: dict[str, Any]) -> str:
    """What a person reads."""
    rows = []
    for name, key in KEYS.items():
        if f"{key}_tok_s" in v:
            speed = v[f"{key}_tok_s"]
            cells = [f"{speed:.1f}", f"{speed / v['stock_plain_tok_s']:.2f}", f"{v[f'{key}_ttft_ms']:.0f}"]
            rows.append([LABELS[name], *cells, f"{v[f'{key}_peak_memory_gb']:.2f}"])
    lines = [f"{v['device']}, {v['dtype']}, {v['num_draft_tokens']} drafts, plan {v['plan']}, temp {v['temp']}, medians"]
    lines.append(format_table(rows, ["arm", "tokens/s", "vs stock", "TTFT ms", "peak GB"]))
    lines.append(f"tau {v['tau']:.3f}   CAR " + " ".join(f"{c:.3f}" for c in v["car"]) + f"   distinct-4 {v['distinct4']:.3f}")
    if len(v.get("chosen", {})) > 1:
        kinds = [f"{name} {c['rounds']} ({c['tokens']} tokens)" for name, c in v["chosen"].items()]
        lines.append("rounds by what they verified: " + ", ".join(kinds))
    if "identical_to_stock" in v:
        same = ", ".join(f"{LABELS[name]} {share:.0%}" for name, share in v["identical_to_stock"].items())
        lines.append(f"texts identical to stock plain decoding: {same}")
    for d in v.get("first_divergences", []):
        lines.append(f"  {d['prompt']}: token {d['position']}, top-2 margin {d['top2_margin']:.3g}")
    if "exact_price" in v:
        lines.append(
            f"--exact costs {v['exact_price']:.0%} of the speed: {v['exact_tok_s'] / v['stock_plain_tok_s']:.2f}x stock"
        )
    if len(v["sets"]) > 1:
        sets = [
            [name, f"{s['stock_plain_tok_s']:.1f}", f"{s['mtpd_tok_s']:.1f}", f"{s['speedup']:.2f}", f"{s['tau']:.3f}"]
            for name, s in v["sets"].items()
        ]
        lines.append(format_table(sets, ["prompts", "stock", "mtpd", "speed-up", "tau"]))
    return "\n".join(lines)


LABELS = {
    "stock": "mlx_lm plain",
    "plain": "mtpd plain",
    "stock speculative": "mlx_lm draft model",
    "exact": "mtpd --exact",
    "mtpd": "mtpd",
}
