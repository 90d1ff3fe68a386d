"""What `mtpd tune` found, in the checkpoint's mtp_config.json under "tuned", by machine."""

from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from mtpd_mlx.checkpoint_format import CONFIG_NAME, read_config, write_json

KEY = "tuned"


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
    entry: Any = config.record.get(KEY, {}).get(machine)
    if entry is None:
        return None
    try:
        found = Tuned(**{f.name: entry[f.name] for f in fields(Tuned)})
    except (KeyError, TypeError) as error:
        raise ValueError(f"{folder / CONFIG_NAME}: {KEY}: missing key {error}; run mtpd tune again") from error
    if not 0 <= found.num_draft_tokens <= config.num_heads:
        raise ValueError(f"{folder / CONFIG_NAME}: {KEY}: got {found.num_draft_tokens} drafts, expected 0..{config.num_heads}")
    return found


def write_tuned(folder: Path, machine: str, tuned: Tuned) -> None:
    """Adds or replaces this machine's entry."""
    config = read_config(folder)
    entries = {**config.record.get(KEY, {}), machine: asdict(tuned)}
    write_json(folder / CONFIG_NAME, replace(config, record={**config.record, KEY: entries}).to_json())
