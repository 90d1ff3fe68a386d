"""`load_model`, `open_from`: base, heads and decoder as options name them.
Called by the commands that decode with MLX, and by api.py."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from mtpd_mlx.options.base import CheckpointOptions, RunnableOptions
from mtpd_mlx.options.decode import DecodingConfig
from mtpd_mlx.options.schema import flag
from mtpd_mlx.speculative.sampling import Sampling


def base_keywords(place: CheckpointOptions) -> dict[str, Any]:
    """The keyword arguments of load_checkpoint."""
    adapter = None if place.adapter_path is None else Path(place.adapter_path).expanduser()
    return {"adapter": adapter, "allow_mismatch": place.allow_base_mismatch}


def open_rounds(
    place: RunnableOptions,
    options: DecodingConfig,
    base: Any,
    heads: Any,
    num_draft_tokens: int | None,
    lookup: bool,
    **drawing: Any,
) -> Any:
    """The decoder that the options ask for: with so many drafts, or with a choice of them for every round, by what `mtpd tune`
    stored for this machine, if it did. `drawing`: what open_decoder takes besides."""
    from mtpd_mlx.decoding.open import open_choosing, open_decoder

    if num_draft_tokens is not None:
        return open_decoder(base, heads if num_draft_tokens else None, options, num_draft_tokens=num_draft_tokens, **drawing)
    tuned = tuned_for(place, base)
    if tuned is None:
        return open_choosing(base, heads, options, lookup=lookup, **drawing)
    drafts, costs = tuned.num_draft_tokens, tuned.kinds or None
    if tuned.num_draft_tokens and options.plan == "auto" and not options.exact and options.kv_bits is None:
        options = replace(options, plan=tuned.plan)
    return open_choosing(base, heads, options, lookup=lookup, costs=costs, num_draft_tokens=drafts, **drawing)


def open_bound(
    place: RunnableOptions,
    options: DecodingConfig,
    base: Any,
    heads: Any,
    num_draft_tokens: int | None,
    lookup: bool,
    **drawing: Any,
) -> Any:
    """The same for texts that are bound by a grammar. ValueError for rounds over fixed buffers."""
    from mtpd_mlx.decoding.open import open_constrained
    from mtpd_mlx.decoding.tuning.plan import Plan

    if options.plan not in ("auto", str(Plan())):
        raise ValueError(f"--plan {options.plan}: texts that are bound by a grammar need the plan growing (or auto)")
    tuned = tuned_for(place, base) if num_draft_tokens is None else None
    costs = None if tuned is None else tuned.kinds or None
    return open_constrained(base, heads, options, num_draft_tokens=num_draft_tokens, lookup=lookup, costs=costs, **drawing)


def tuned_for(place: RunnableOptions, base: Any) -> Any:
    """What `mtpd tune` stored for this machine; None: nothing."""
    from mtpd_mlx.checkpoints.format import CONFIG_NAME
    from mtpd_mlx.decoding.tuning.machine import machine_key
    from mtpd_mlx.decoding.tuning.stored import read_tuned
    from mtpd_mlx.hub.pull import resolve_folder

    folder = resolve_folder(place.checkpoint)
    return read_tuned(folder, machine_key(base.dtype)) if (folder / CONFIG_NAME).is_file() else None


def open_from(
    place: RunnableOptions,
    options: DecodingConfig,
    sampling: Sampling,
    *,
    plain: bool,
    num_draft_tokens: int | None,
    lookup: bool,
) -> tuple[Any, Any]:
    """(decoder, base) as the options say."""
    from mtpd_mlx.text.tokenizer import Tokenizer

    base, heads = load_model(place, alone=plain or (lookup and not num_draft_tokens))
    special = xtc_special_tokens(Tokenizer.from_folder(base.path)) if sampling.xtc_probability else ()
    drawing = {"sampling": sampling, "xtc_special_tokens": special}
    return open_rounds(place, options, base, heads, 0 if plain else num_draft_tokens, lookup, **drawing), base


def xtc_special_tokens(tokenizer: Any) -> tuple[int, ...]:
    """What XTC never leaves out, as in mlx_lm.generate: line break and end of text."""
    return (*tokenizer.encode("\n", False), *sorted(tokenizer.eos_token_ids))


def load_model(place: RunnableOptions, alone: bool = False) -> tuple[Any, Any]:
    """(base, heads or None) of the options; both in the type that the options say. `alone`: it may be a base without heads."""
    from mtpd_mlx.checkpoints.format import CONFIG_NAME
    from mtpd_mlx.hub.pull import resolve_folder
    from mtpd_mlx.model.base import load_base
    from mtpd_mlx.model.compute import compute_in
    from mtpd_mlx.model.load_save import load_checkpoint
    from mtpd_mlx.model.runtime import mx

    folder, known = resolve_folder(place.checkpoint), base_keywords(place)
    if alone and not (folder / CONFIG_NAME).is_file() and (folder / "config.json").is_file():
        for name in ("model", "allow_base_mismatch"):
            if getattr(place, name):
                raise ValueError(
                    f"{flag(name)}: expected a heads checkpoint, got {place.checkpoint}, which is a base; leave the option out"
                )
        base, heads = load_base(place.checkpoint, dequantize=place.dequantize, adapter=known["adapter"]), None
    else:
        base, heads, _ = load_checkpoint(folder, place.model, dequantize=place.dequantize, **known)
    compute_in(base, place.dtype)
    if heads is not None:
        heads.set_dtype(base.dtype)
        mx.eval(heads.parameters())
    return base, heads
