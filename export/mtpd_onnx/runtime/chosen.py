"""`chosen`: the choice of drafts that an opened folder begins with.
Called by runtime/open.py and open_device.py."""

from collections.abc import Sequence
from typing import Any

from mtpd_mlx.speculative.choice import DEFAULT_AR, Chooser
from mtpd_mlx.speculative.drafting import ChosenDrafting
from mtpd_mlx.speculative.lookup import Lookup
from mtpd_mlx.speculative.round_costs import RoundCosts
from mtpd_onnx.manifest import Manifest

ELSEWHERE = 0.95  # acceptance in other texts than those that heads were validated on, as a share of it


def chosen(costs: RoundCosts, manifest: Manifest, lookup: bool, timed: bool) -> ChosenDrafting:
    """Among the kinds of rounds that `costs` knows. `timed`: what rounds take corrects their costs."""
    counts = [kind.num_drafts for kind in costs.kinds if kind.source == "heads"]
    return ChosenDrafting(Chooser(costs, counts, prior_of(manifest)), Lookup() if lookup else None, timed)


def prior_of(manifest: Manifest) -> Sequence[float]:
    """AR by depth before anything is known of a text: what the checkpoint was validated with, where its record says so."""
    found: Any = manifest.record.get("eval")
    for name in ("validation", "ar"):
        found = found.get(name) if isinstance(found, dict) else None
    if not isinstance(found, list) or not found or not all(type(ar) is float and 0 < ar <= 1 for ar in found):
        return DEFAULT_AR
    return [ELSEWHERE * ar for ar in found]
