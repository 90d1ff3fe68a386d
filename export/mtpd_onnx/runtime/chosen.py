"""`opened_drafting`, `chosen`: the choice of drafts that an opened folder begins with.
Called by runtime/open.py and open_device.py."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from mtpd_mlx.speculative.choice import DEFAULT_AR, Chooser
from mtpd_mlx.speculative.drafting import ChosenDrafting
from mtpd_mlx.speculative.finite import NotFiniteError
from mtpd_mlx.speculative.lookup import Lookup
from mtpd_mlx.speculative.round_costs import Kind, RoundCosts
from mtpd_mlx.speculative.sampling import Sampling
from mtpd_onnx.manifest import Manifest
from mtpd_onnx.runtime.measured_costs import costs_key, guessed, known_or_measured

ELSEWHERE = 0.95  # acceptance in other texts than those that heads were validated on, as a share of it


def opened_drafting(
    seconds_of: Callable[[Sequence[Kind]], dict[Kind, float]],
    kinds: Sequence[Kind],
    folder: Path,
    manifest: Manifest,
    provider: str,
    *,
    num_threads: int | None,
    sampling: Sampling | None,
    lookup: bool,
    remeasure: bool,
) -> ChosenDrafting:
    """Among `kinds`, by what `seconds_of` measures now, unless it was measured before (`remeasure`: all the same). With a seed
    guesses decide, and no times: the same texts would not come again."""
    timed = sampling is None or sampling.seed is None
    costs = RoundCosts(guessed(kinds, manifest.precision, manifest.activations))
    if timed:
        with suppress(NotFiniteError):  # decoding says so, and where
            key = costs_key(folder, provider, num_threads, kinds, sampled=sampling is not None)
            costs = known_or_measured(key, remeasure, lambda: seconds_of(kinds))
    return chosen(costs, manifest, lookup, timed)


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
