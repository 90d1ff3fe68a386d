"""`read_tuned`, `write_tuned`: results of `mtpd tune` in mtp_config.json under "tuned", by machine.
Called by `mtpd tune` and commands/loading.py."""

import math
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from mtpd_mlx.checkpoints.format import CONFIG_NAME, TUNED, read_config
from mtpd_mlx.decoding.tuning.plan import PLANS
from mtpd_mlx.files.atomic import write_json
from mtpd_mlx.speculative.round_costs import Kind


@dataclass(frozen=True)
class Tuned:
    """num_draft_tokens: the fastest of the fixed numbers, 0 where plain decoding is; for decoders that have one number.
    speedup: its own over stock mlx_lm's plain decoding when it was measured. costs: plain steps that a round of each kind
    takes, by its name ("heads 4", "lookup 8"), for the choice of every round; empty where rounds are not chosen (fixed
    buffers), and in what was stored before they were."""

    num_draft_tokens: int
    plan: str
    speedup: float
    costs: dict[str, float] = field(default_factory=dict)

    @property
    def kinds(self) -> dict[Kind, float]:
        """`costs` by kind."""
        return {Kind.named(name): cost for name, cost in self.costs.items()}

    @property
    def name(self) -> str:
        return f"{self.num_draft_tokens} drafts, plan {self.plan}" if self.num_draft_tokens else "plain"


def read_tuned(folder: Path, machine: str) -> Tuned | None:
    """ValueError where the entry is not what `mtpd tune` writes."""
    config = read_config(folder)
    entries: Any = config.record.get(TUNED, {})
    entry = entries.get(machine) if isinstance(entries, dict) else entries
    if entry is None:
        return None
    if why := _fault(entry, config.num_heads):
        raise ValueError(f"{folder / CONFIG_NAME}: {TUNED}: {why}; run mtpd tune again, or give --num-draft-tokens")
    return Tuned(**{f.name: entry[f.name] for f in fields(Tuned) if f.name in entry})


def _fault(entry: Any, num_heads: int) -> str | None:
    """What is wrong with an entry as JSON has it."""
    if not isinstance(entry, dict):
        return f"got {type(entry).__name__}, expected an object"
    if missing := [f.name for f in fields(Tuned) if f.name not in entry and f.name != "costs"]:
        return f"missing key {missing[0]!r}"
    drafts, plan, speedup = entry["num_draft_tokens"], entry["plan"], entry["speedup"]
    if type(drafts) is not int or not 0 <= drafts <= num_heads:
        return f"num_draft_tokens: got {drafts!r}, expected 0..{num_heads}"
    if plan not in (names := ["auto", *map(str, PLANS)]):
        return f"plan: got {plan!r}, expected one of {', '.join(names)}"
    if type(speedup) not in (int, float):
        return f"speedup: got {speedup!r}, expected a number"
    return _fault_of_costs(entry.get("costs", {}))


def _fault_of_costs(costs: Any) -> str | None:
    if not isinstance(costs, dict):
        return f"costs: got {type(costs).__name__}, expected an object"
    for name, cost in costs.items():
        try:
            Kind.named(name)
        except ValueError as error:
            return f"costs: {error}"
        if type(cost) not in (int, float) or not (cost > 0 and math.isfinite(cost)):
            return f"costs: {name}: got {cost!r}, expected a number above 0"
    return None


def write_tuned(folder: Path, machine: str, tuned: Tuned) -> None:
    """Adds or replaces this machine's entry; a damaged table is replaced whole."""
    config = read_config(folder)
    known = config.record.get(TUNED)
    entries = {**(known if isinstance(known, dict) else {}), machine: asdict(tuned)}
    write_json(folder / CONFIG_NAME, replace(config, record={**config.record, TUNED: entries}).to_json())
