"""`mtpd tune`: costs of rounds and the fastest number of drafts, stored in the checkpoint.
Called by mtpd_mlx/cli.py."""

import json
import os
import sys
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

from mtpd_mlx.commands.loading import load_model
from mtpd_mlx.options.base import RunnableOptions
from mtpd_mlx.options.decode import DecodingConfig
from mtpd_mlx.options.measure import TuneOptions
from mtpd_mlx.text.messages import dot

OPTIONS = (RunnableOptions, TuneOptions, DecodingConfig)
EXAMPLES = ("mtpd tune heads --prompts prompts.jsonl",)

LEAST_GAIN = 1.02  # below this over plain decoding, speculation is not worth its memory


def run(place: RunnableOptions, tune: TuneOptions, options: DecodingConfig) -> int:
    from mtpd_mlx.decoding.tuning.machine import machine_key
    from mtpd_mlx.decoding.tuning.stored import write_tuned
    from mtpd_mlx.files.lock import locked
    from mtpd_mlx.hub.pull import resolve_folder

    folder = resolve_folder(place.checkpoint)
    if not tune.dry_run and folder.is_dir() and not os.access(folder, os.W_OK | os.X_OK):
        raise ValueError(f"{folder}: cannot be written, so nothing can be stored; --dry-run measures only")
    with nullcontext() if tune.dry_run else locked(folder):
        base, heads = load_model(place)
        speeds, tuned = measure(tune, options, base, heads)
        machine = machine_key(base.dtype)
        if not tune.dry_run:
            write_tuned(folder, machine, tuned)
    values = {"machine": machine, "tokens_per_second": speeds, "chosen": vars(tuned), "stored": not tune.dry_run}
    print(json.dumps(values, indent=2) if tune.json else describe(values, tuned.name))
    return 0


def measure(tune: TuneOptions, options: DecodingConfig, base: Any, heads: Any) -> tuple[dict[str, float], Any]:
    """(tokens per second of every arm, the choice)."""
    from mtpd_mlx.decoding.bench.arms import our_arm, stock_arm
    from mtpd_mlx.decoding.open import chooses, choosing_decoder, open_decoder
    from mtpd_mlx.decoding.tuning.choice import kinds
    from mtpd_mlx.decoding.tuning.costs import DRAFTS
    from mtpd_mlx.decoding.tuning.round_times import round_times
    from mtpd_mlx.speculative.bench import interleave
    from mtpd_mlx.speculative.sampling import Sampling
    from mtpd_mlx.text.prompts import encode_prompts
    from mtpd_mlx.text.tokenizer import Tokenizer

    tokenizer = Tokenizer.from_folder(base.path)
    room = base.context_length - tune.max_tokens - heads.num_heads - 1
    prompts = [p.tokens for p in encode_prompts(tune.prompts, tokenizer, room, tune.limit, chat=not tune.ignore_chat_template)]
    counts = sorted({k for k in DRAFTS if k < heads.num_heads} | {heads.num_heads})
    decoders = {k: open_decoder(base, heads, options, num_draft_tokens=k) for k in counts}
    plain = our_arm("plain", open_decoder(base, None, options.of_plain()), plain=True)
    arms = {k: our_arm(f"K={k}", decoder) for k, decoder in decoders.items()}
    stock = stock_arm(base, Sampling())  # greedy
    interleave(
        [stock, plain, *arms.values()], prompts, tune.max_tokens, repeats=tune.repeats, cool_down=tune.cool_down, see=dot
    )
    print(file=sys.stderr)
    speeds = {arm.name: arm.tokens_per_second for arm in (stock, plain, *arms.values())}
    widest = decoders[heads.num_heads]
    chosen = choose(speeds, {k: str(d.plan) for k, d in decoders.items()})
    if not chooses(widest):
        return speeds, chosen
    rounds = round_times(partial(choosing_decoder, widest.model, widest.plan), kinds(heads.num_heads, True), prompts[0], dot)
    return speeds, replace(chosen, costs={str(kind): round(cost, 3) for kind, cost in rounds.items()})


def choose(speeds: dict[str, float], plans: dict[int, str]) -> Any:
    """The fastest number of drafts, or plain decoding where none gains enough over the faster of both plain arms."""
    from mtpd_mlx.decoding.tuning.stored import Tuned

    drafts = max(plans, key=lambda k: speeds[f"K={k}"])
    if speeds[f"K={drafts}"] < LEAST_GAIN * max(speeds["plain"], speeds["stock"]):
        return Tuned(0, "auto", speeds["plain"] / speeds["stock"])
    return Tuned(drafts, plans[drafts], speeds[f"K={drafts}"] / speeds["stock"])


def describe(v: dict[str, Any], name: str) -> str:
    from mtpd_mlx.text.tables import format_table

    stock = v["tokens_per_second"]["stock"]
    rows = [[arm, f"{speed:.1f}", f"{speed / stock:.2f}"] for arm, speed in v["tokens_per_second"].items()]
    kept = "stored; mtpd generate, chat and bench follow it on this machine" if v["stored"] else "not stored (--dry-run)"
    lines = [v["machine"], format_table(rows, ["arm", "tokens/s", "vs stock"]), f"fastest: {name} ({kept})"]
    if costs := v["chosen"]["costs"]:
        lines.append("plain steps that a round takes: " + ", ".join(f"{kind} {cost:.2f}" for kind, cost in costs.items()))
    return "\n".join(lines)
