"""`open_batch`: a Batch from a model and options: side by side if they allow it, else one by one.
Called by `mtpd serve`."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mtpd_mlx.decoding.batch import MLXBatch
from mtpd_mlx.decoding.batch_row import Alone
from mtpd_mlx.decoding.choosing import ChoosingDecoder
from mtpd_mlx.decoding.open import model_of
from mtpd_mlx.decoding.rows_cache import why_not
from mtpd_mlx.decoding.tuning.choice import chosen_drafting
from mtpd_mlx.decoding.tuning.machine import costs_key
from mtpd_mlx.model.base import Base
from mtpd_mlx.model.heads import MTPHeads
from mtpd_mlx.model.runtime import on_cpu
from mtpd_mlx.options.decode import DecodingConfig
from mtpd_mlx.speculative.batch import Batch
from mtpd_mlx.speculative.drafting import ChosenDrafting, Drafting, FixedDrafting
from mtpd_mlx.speculative.lookup import Lookup
from mtpd_mlx.speculative.one_by_one import OneByOne
from mtpd_mlx.speculative.round_costs import Kind
from mtpd_mlx.speculative.sampling import Sampling

logger = logging.getLogger(__name__)
AT_REST = 4  # rows beyond those that are decoded, whose texts stay cached
KEPT = 2  # of decoders that know nothing of each other


def open_batch(
    base: Base,
    heads: MTPHeads | None,
    options: DecodingConfig,
    most: int,
    one: Callable[[Sampling], Any],
    *,
    num_draft_tokens: int | None = None,
    capacity: int | None = None,
    costs: Mapping[Kind, float] | None = None,
    xtc_special_tokens: Sequence[int] = (),
) -> Batch:
    """Rows for `most` texts at a time. one: a decoder of one text, where rows cannot be had, and for a row that is alone where
    the options, a GPU's measurement or MLX CUDA want fixed buffers. num_draft_tokens None: chosen."""
    why = "--exact" if options.exact else why_not(base)
    if why is not None:
        if most > 1:
            logger.info("requests are decoded one at a time: %s", why)
        return OneByOne(one, KEPT)
    rows = _Rows(base, heads, options.of_server(), num_draft_tokens, capacity, costs, xtc_special_tokens)
    alone = None
    if options.plan.startswith("fixed") or not on_cpu():  # else it is a decoder as rows are
        first = one(Sampling())
        alone = None if isinstance(first, ChoosingDecoder) else Alone(one, first)
    key = None if num_draft_tokens is not None else costs_key(base, heads, options, lookup=False, sampled=False)
    key = key and f"{key}; {'stacked' if stacked(options) else 'apart'}"
    return MLXBatch(rows.open, most + AT_REST, most, num_draft_tokens, alone, stacked(options), key)


def stacked(options: DecodingConfig) -> bool:
    """Rounds of several texts are over caches in one buffer: where every operation has to be launched."""
    return not on_cpu() and options.kv_bits is None


class _Rows:
    """Opens rows. What is known of the costs of rounds is shared by all of them."""

    def __init__(
        self,
        base: Base,
        heads: MTPHeads | None,
        options: DecodingConfig,
        num_draft_tokens: int | None,
        capacity: int | None,
        costs: Mapping[Kind, float] | None,
        special: Sequence[int],
    ):
        self.base, self.heads, self.options = base, heads if num_draft_tokens != 0 else None, options
        self.count, self.capacity, self.costs, self.special = num_draft_tokens, capacity, costs, special
        self._shared: ChosenDrafting | None = None

    def open(self, sampling: Sampling) -> ChoosingDecoder:
        model = model_of(
            self.base,
            self.heads,
            self.options,
            num_draft_tokens=self.count,
            capacity=self.capacity,
            sampling=sampling,
            xtc_special_tokens=self.special if sampling.xtc_probability else (),
        )
        return ChoosingDecoder(model, self._drafting(sampling), self.capacity)

    def _drafting(self, sampling: Sampling) -> Drafting:
        if self.count is not None:
            return FixedDrafting(self.count)
        if sampling.seed is not None and not sampling.greedy:
            return chosen_drafting(self.base, self.heads, with_lookup=True, costs=self.costs, timed=False)
        if self._shared is None:
            self._shared = chosen_drafting(self.base, self.heads, with_lookup=True, costs=self.costs)
            return self._shared
        return ChosenDrafting(self._shared.chooser, Lookup())
