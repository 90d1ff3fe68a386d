"""`kinds`, `guessed`: the rounds that MLX chooses among, and a first guess of their costs.
Called by decoding/open.py and the batch.

The guess need not be good: rounds correct it (speculative/round_costs.py). It counts bytes: a pass over one token reads every
weight once; a further row costs a share of that (ROW); a head reads its own weights and the output head's once.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from mtpd_mlx.model.base import Base
from mtpd_mlx.model.heads import MTPHeads
from mtpd_mlx.model.runtime import mx, nn, on_cpu
from mtpd_mlx.speculative.choice import Chooser
from mtpd_mlx.speculative.drafting import ChosenDrafting
from mtpd_mlx.speculative.lookup import Lookup
from mtpd_mlx.speculative.round_costs import IN_A_MOMENT, PLAIN, Kind, RoundCosts, heads, lookup

HEAD_COUNTS = (1, 2, 3, 4, 6, 8, 12, 16)
LOOKUP_COUNTS = (2, 4, 8, 16)
ROW_ON_CPU, ROW = 0.12, 0.04  # of a plain step, for every row but the first


def kinds(num_heads: int, with_lookup: bool) -> list[Kind]:
    """What there is to choose among."""
    counts = sorted({k for k in HEAD_COUNTS if k < num_heads} | {num_heads} - {0})
    return [PLAIN, *map(heads, counts), *map(lookup, LOOKUP_COUNTS if with_lookup else ())]


def guessed(base: Base, own: MTPHeads | None, known: list[Kind]) -> dict[Kind, float]:
    """Plain steps that a round of each kind may cost."""
    row = ROW_ON_CPU if on_cpu() else ROW
    share = 0.0 if own is None else head_share(base, own)
    return {k: 1 + row * k.num_drafts + (share * k.num_drafts if k.source == "heads" else 0) for k in known}


def head_share(base: Base, own: MTPHeads) -> float:
    """What a head reads for a draft, of what the base reads for a token."""
    shared = 1.0 if own.draft_tokens is None else own.draft_tokens.size / base.vocab_size
    output = base.vocab_size * base.dims.hidden_size * base.dtype.size
    return (size(own.heads[0]) + shared * output) / size(base.model)


def size(module: nn.Module) -> int:
    """Bytes of its weights."""
    from mlx.utils import tree_flatten

    leaves: Any = tree_flatten(module.parameters())
    return sum(array.nbytes for _, array in leaves if isinstance(array, mx.array))


def chosen_drafting(
    base: Base,
    own: MTPHeads | None,
    *,
    with_lookup: bool,
    costs: Mapping[Kind, float] | None = None,
    timed: bool = True,
    partial: bool = False,
) -> ChosenDrafting:
    """`costs`: measured here, of every kind that rounds may choose, or, with `partial`, of those alone that they may; None:
    guessed. `timed`: as ChosenDrafting's."""
    known = kinds(0 if own is None else own.num_heads, with_lookup)
    if costs is not None and partial:
        known = [kind for kind in known if kind in costs]
    measured = costs is not None and all(kind in costs for kind in known)
    table = {k: costs[k] for k in known} if costs is not None and measured else guessed(base, own, known)
    counts = [k.num_drafts for k in known if k.source == "heads"]
    chooser = Chooser(RoundCosts(table, measured=measured, spread=IN_A_MOMENT if partial else None), counts)
    return ChosenDrafting(chooser, Lookup() if with_lookup else None, timed)


def by_use(known: Sequence[Kind]) -> list[Kind]:
    """The same kinds, those first that texts come to most: plain steps, all heads, half of them, lookup's middle ones."""
    most = max((kind.num_drafts for kind in known if kind.source == "heads"), default=0)
    order = {PLAIN: 0, heads(most): 1, heads((most + 1) // 2): 2, lookup(8): 3, lookup(4): 4, lookup(16): 5, heads(1): 6}
    return sorted(known, key=lambda kind: order.get(kind, len(order)))
