"""What `mtpd tune` found, in the checkpoint's mtp_config.json under "tuned", by machine."""

from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from mtpd_mlx.checkpoints.format import CONFIG_NAME, TUNED, read_config
from mtpd_mlx.decoding.tuning.plan import PLANS
from mtpd_mlx.files.atomic import write_json


@dataclass(frozen=True)
class Tuned:
    """num_draft_tokens 0: plain decoding is fastest. speedup: over stock mlx_lm's plain decoding when it was measured."""

    num_draft_tokens: int
    plan: str
    speedup: float

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
    return Tuned(**{f.name: entry[f.name] for f in fields(Tuned)})


def _fault(entry: Any, num_heads: int) -> str | None:
    """What is wrong with an entry as JSON has it."""
    if not isinstance(entry, dict):
        return f"got {type(entry).__name__}, expected an object"
    if missing := [f.name for f in fields(Tuned) if f.name not in entry]:
        return f"missing key {missing[0]!r}"
    drafts, plan, speedup = entry["num_draft_tokens"], entry["plan"], entry["speedup"]
    if type(drafts) is not int or not 0 <= drafts <= num_heads:
        return f"num_draft_tokens: got {drafts!r}, expected 0..{num_heads}"
    if plan not in (names := ["auto", *map(str, PLANS)]):
        return f"plan: got {plan!r}, expected one of {', '.join(names)}"
    if type(speedup) not in (int, float):
        return f"speedup: got {speedup!r}, expected a number"
    return None


def write_tuned(folder: Path, machine: str, tuned: Tuned) -> None:
    """Adds or replaces this machine's entry; a damaged table is replaced whole."""
    config = read_config(folder)
    known = config.record.get(TUNED)
    entries = {**(known if isinstance(known, dict) else {}), machine: asdict(tuned)}
    write_json(folder / CONFIG_NAME, replace(config, record={**config.record, TUNED: entries}).to_json())
