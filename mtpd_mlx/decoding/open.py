"""`open_decoder`: a Backend from a model and options.
Called by the commands that decode, and by api.py."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TypedDict, Unpack

from mtpd_mlx.decoding.choosing import ChoosingDecoder
from mtpd_mlx.decoding.decoder import Decoder, needs_growing
from mtpd_mlx.decoding.fixed_choosing import FixedChoosingDecoder
from mtpd_mlx.decoding.logit_model import HostedModel
from mtpd_mlx.decoding.plain import PlainDecoder
from mtpd_mlx.decoding.sampler import Sampled
from mtpd_mlx.decoding.text_state import KVOptions, LogitsProcessor, Model
from mtpd_mlx.decoding.token_rules import Greedy, Rule
from mtpd_mlx.decoding.tuning.calibrate import candidates, choose, room, time_plans
from mtpd_mlx.decoding.tuning.choice import by_use, chosen_drafting, kinds
from mtpd_mlx.decoding.tuning.machine import costs_key
from mtpd_mlx.decoding.tuning.plan import Plan
from mtpd_mlx.decoding.tuning.round_times import warmed
from mtpd_mlx.files.measured import StoredCosts, store_costs, stored_costs
from mtpd_mlx.model.base import Base
from mtpd_mlx.model.heads import MTPHeads
from mtpd_mlx.model.runtime import on_cpu, on_cuda
from mtpd_mlx.options.decode import DecodingConfig
from mtpd_mlx.speculative.constrained import ConstrainedBackend
from mtpd_mlx.speculative.drafting import Drafting, FixedDrafting
from mtpd_mlx.speculative.finite import NotFiniteError
from mtpd_mlx.speculative.lookup import MOST_DRAFTS
from mtpd_mlx.speculative.round_costs import Kind, by_kind, plausible
from mtpd_mlx.speculative.sampling import Sampling

DEFAULT, GREEDY = DecodingConfig(), Sampling()


class Drawing(TypedDict, total=False):
    """What one text is decoded with, by keywords. capacity: positions (the base's context); sampling: greedy; special tokens
    are what XTC never leaves out."""

    capacity: int | None
    sampling: Sampling
    logits_processors: Sequence[LogitsProcessor]
    xtc_special_tokens: Sequence[int]


def open_decoder(
    base: Base,
    heads: MTPHeads | None,
    options: DecodingConfig = DEFAULT,
    *,
    num_draft_tokens: int | None = None,
    **drawing: Unpack[Drawing],
) -> Decoder | PlainDecoder:
    """num_draft_tokens None: all heads; 0, or no heads: plain decoding. ValueError in one line where options contradict."""
    model = model_of(base, heads, options, num_draft_tokens=num_draft_tokens, **drawing)
    return with_plan(model, options.plan, drawing.get("capacity"))


def model_of(
    base: Base,
    heads: MTPHeads | None,
    options: DecodingConfig = DEFAULT,
    *,
    num_draft_tokens: int | None = None,
    **drawing: Unpack[Drawing],
) -> Model:
    """As open_decoder."""
    available = heads.num_heads if heads is not None else 0
    k = available if num_draft_tokens is None else num_draft_tokens
    if not 0 <= k <= available:
        raise ValueError(f"--num-draft-tokens: got {k}, expected 0..{available} (the checkpoint's heads)")
    check_kv(base, options)
    rule: Rule = Greedy(None if heads is None else heads.draft_tokens)
    if not (sampling := drawing.get("sampling", GREEDY)).greedy:
        positions = (drawing.get("capacity") or base.context_length) + 2 * max(k, MOST_DRAFTS) + 3
        special = drawing.get("xtc_special_tokens", ())
        rule = Sampled(sampling, base.vocab_size, positions, heads.draft_tokens if heads else None, special)
    own, processors = heads if k else None, tuple(drawing.get("logits_processors", ()))
    return Model(base, own, k, rule, options.exact, kv_options(options), processors, options.windows)


def open_choosing(
    base: Base,
    heads: MTPHeads | None,
    options: DecodingConfig = DEFAULT,
    *,
    lookup: bool = True,
    costs: Mapping[Kind, float] | None = None,
    num_draft_tokens: int | None = None,
    remeasure: bool = False,
    **drawing: Unpack[Drawing],
) -> Decoder | PlainDecoder:
    """A decoder that chooses the drafts of every round: the heads' (None: there are none), as many as pay, those of prompt
    `lookup`, or none. `costs`: what rounds cost here, where that is measured. Without them a GPU measures, unless it did so
    before (files/measured.py; `remeasure`: all the same).

    Rounds have one number of drafts, num_draft_tokens (None: all heads), with --exact, and over growing caches on MLX CUDA:
    such a cache makes a plan there for every new length, which takes longer than any draft saves.
    """

    def opened(count: int | None, how: DecodingConfig) -> Decoder | PlainDecoder:
        own, more = (None, 0) if count == 0 else (heads, count)
        return open_decoder(base, own, how, num_draft_tokens=more, **drawing)

    sampling = drawing.get("sampling", GREEDY)
    timed = sampling.greedy or sampling.seed is None
    key = None
    if costs is None and timed and not on_cpu() and not options.exact:  # else nothing is measured here
        key = costs_key(base, heads, options, lookup=lookup, sampled=not sampling.greedy)
    known = None if key is None or remeasure else stored_costs(key)
    if known is not None and known.plan is not None:
        options = replace(options, plan=known.plan)
    widest = opened(None, options)
    if not (chooses(widest) and (widest.num_draft_tokens or lookup)):
        return widest if num_draft_tokens in (None, widest.num_draft_tokens) else opened(num_draft_tokens, options)
    drafting = chosen_drafting(base, widest.model.heads, with_lookup=lookup, costs=costs, timed=timed)
    decoder = choosing_decoder(widest.model, widest.plan, drafting, drawing.get("capacity"))
    decoder.plan_milliseconds = widest.plan_milliseconds
    if key is not None and isinstance(decoder, FixedChoosingDecoder):
        found = by_kind(known.costs) if known is not None else {}
        found = found or measured(decoder, kinds(widest.num_draft_tokens, lookup), key)
        if found:
            decoder.drafting = chosen_drafting(base, widest.model.heads, with_lookup=lookup, costs=found, partial=True)
    return decoder


def measured(decoder: FixedChoosingDecoder, known: Sequence[Kind], key: str) -> dict[Kind, float]:
    """The cost of each kind of round that there was time to compile. Stored under `key` if these are all: kernels that were
    compiled for the first time are found at the next start."""
    found = dict[Kind, float]()
    with suppress(NotFiniteError):  # decoding says so, and where
        found = warmed(decoder, by_use(known), decoder.model.base.vocab_size)
    if len(found) == len(known) and plausible(found):
        store_costs(key, StoredCosts({str(kind): cost for kind, cost in found.items()}, str(decoder.plan)))
    return found


def chooses(decoder: Decoder | PlainDecoder) -> bool:
    """Whether the drafts of every round can be chosen with this decoder's model and plan."""
    return not decoder.model.exact and (decoder.plan.cache == "fixed" or not on_cuda())


def choosing_decoder(model: Model, plan: Plan, drafting: Drafting, capacity: int | None = None) -> Decoder:
    """The backend that chooses the drafts of every round, over growing or fixed caches as the plan says."""
    if plan.cache == "growing":
        return ChoosingDecoder(model, drafting, capacity)
    return FixedChoosingDecoder(model, plan, drafting, capacity)


def open_constrained(
    base: Base,
    heads: MTPHeads | None,
    options: DecodingConfig = DEFAULT,
    *,
    num_draft_tokens: int | None = None,
    lookup: bool = True,
    costs: Mapping[Kind, float] | None = None,
    capacity: int | None = None,
    sampling: Sampling = GREEDY,
    xtc_special_tokens: Sequence[int] = (),
) -> ConstrainedBackend:
    """Decodes texts that are bound by a grammar, over growing caches. num_draft_tokens None: chosen for every round, among the
    heads' and those of prompt `lookup`; 0: none but the grammar's own."""
    available = heads.num_heads if heads is not None else 0
    if num_draft_tokens is not None and not 0 <= num_draft_tokens <= available:
        raise ValueError(f"--num-draft-tokens: got {num_draft_tokens}, expected 0..{available} (the checkpoint's heads)")
    check_kv(base, options)
    own = None if num_draft_tokens == 0 else heads
    count = num_draft_tokens if num_draft_tokens is not None else available
    rule = Greedy(own.draft_tokens if own else None)
    model = Model(base, own, count, rule, options.exact, kv_options(options), windows=options.windows)
    drafting: Drafting = FixedDrafting(num_draft_tokens or 0)
    if num_draft_tokens is None:
        repeatable = not sampling.greedy and sampling.seed is not None
        drafting = chosen_drafting(base, own, with_lookup=lookup, costs=costs, timed=not repeatable)
    return ConstrainedBackend(HostedModel(model, capacity), drafting, sampling, xtc_special_tokens)


def with_plan(model: Model, plan: str, capacity: int | None = None) -> Decoder | PlainDecoder:
    """`plan`: a name, or auto: on a GPU the fastest of a few rounds; mlx-lm's own caches on a CPU, where options need them, and
    where the model's context is too short to measure any."""

    def make(chosen: Plan, capacity: int | None = capacity) -> Decoder | PlainDecoder:
        if chosen.cache == "growing" and not model.num_draft_tokens:
            return PlainDecoder(model, capacity)
        return Decoder(model, chosen, capacity)

    if plan != "auto":
        return make(Plan.parse(plan))
    plans = candidates(model.num_draft_tokens)
    short = model.base.context_length < room(model.num_draft_tokens)
    if len(plans) == 1 or short or needs_growing(model):
        return make(Plan())
    times = time_plans(lambda p: make(p, None), plans, model.base.vocab_size)
    decoder = make(choose(times))
    decoder.plan_milliseconds = {str(p): round(1000 * seconds, 3) for p, seconds in times.items()}
    return decoder


def kv_options(options: DecodingConfig) -> KVOptions:
    """How the base's KV cache is quantised, from the options."""
    return KVOptions(options.kv_bits, options.kv_group_size, options.quantized_kv_start)


def check_kv(base: Base, options: DecodingConfig) -> None:
    """ValueError where the heads of attention cannot be quantised in such groups."""
    if options.kv_bits is None:
        return
    if base.dims.sinks:
        raise ValueError(f"--kv-bits: {base.dims.model_type} has attention sinks, which quantised caches have no kernel for")
    for size in {base.dims.geometry(layer).head_dim for layer in base.dims.layers}:
        if size % options.kv_group_size:
            raise ValueError(f"--kv-group-size: got {options.kv_group_size}, expected a divisor of the head size {size}")
