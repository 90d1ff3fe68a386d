"""`mtpd probe`: the cost of rounds on this machine, and the acceptance that pays for it.
Called by mtpd_mlx/cli.py."""

import json
import logging
import sys
from typing import Any

from mtpd_mlx.commands.loading import load_model
from mtpd_mlx.options.base import RunnableOptions
from mtpd_mlx.options.decode import DecodingConfig
from mtpd_mlx.options.measure import MeasureOptions, ProbeOptions
from mtpd_mlx.text.messages import dot

OPTIONS = (RunnableOptions, ProbeOptions, DecodingConfig)
EXAMPLES = ("mtpd probe Qwen/Qwen3-0.6B",)

logger = logging.getLogger(__name__)
MOST_PROMPTS = 32  # that acceptance is measured on
PROFILES = (0.5, 0.6, 0.7, 0.8, 0.9)  # AR of the heads that one might get


def run(place: RunnableOptions, probe: ProbeOptions, options: DecodingConfig) -> int:
    from mtpd_mlx.checkpoints.format import CONFIG_NAME
    from mtpd_mlx.decoding.tuning.costs import DRAFTS, WIDEST, measure_costs
    from mtpd_mlx.hub.pull import resolve_folder

    has_heads = (resolve_folder(place.checkpoint) / CONFIG_NAME).is_file()
    if probe.prompts is not None and not has_heads:
        raise ValueError(
            f"--prompts: expected a checkpoint with heads, whose acceptance is measured, got the base {place.checkpoint}"
        )
    base, heads = load_model(place, alone=not has_heads)
    contexts = usable_contexts(list(probe.contexts), base.context_length, 8 * WIDEST)
    if options.kv_bits is not None and max(contexts) < options.quantized_kv_start:
        logger.info("--kv-bits: no context reaches --quantized-kv-start %d: nothing is quantised", options.quantized_kv_start)
    car, source = acceptance(place.checkpoint, probe, base, heads)
    drafts = DRAFTS if heads is None else sorted({k for k in DRAFTS if k < heads.num_heads} | {heads.num_heads})
    costs = [measure_costs(base, n, options=options, drafts=drafts, heads=heads, see=dot) for n in contexts]
    print(file=sys.stderr)
    how = {"exact": options.exact, "kv_bits": options.kv_bits}
    heads_of = {"num_heads": None if heads is None else heads.num_heads, "car": car, "car_source": source}
    values = how | heads_of | summary(costs, car)
    print(json.dumps(values, indent=2) if probe.json else describe(values))
    return 0


def usable_contexts(wanted: list[int], context_length: int, room: int) -> list[int]:
    """Those behind which `room` positions are free; what is left out is said. ValueError where none is left."""
    longest = context_length - room
    if longest < 1:
        raise ValueError(f"this model's context is {context_length}, of which measuring takes {room}: too short to probe")
    usable = [n for n in wanted if 1 <= n <= longest]
    if not usable or min(wanted) < 1:
        raise ValueError(f"--contexts: got {wanted}, expected some in 1..{longest}")
    if longer := [n for n in wanted if n > longest]:
        left_out = f"context {', '.join(map(str, longer))} left out"
        logger.info("%s: this model's context is %d, of which measuring takes %d", left_out, context_length, room)
    return usable


def acceptance(checkpoint: str, probe: ProbeOptions, base: Any, heads: Any) -> tuple[list[float] | None, str | None]:
    """(CAR by depth of the checkpoint's heads, on which text): measured, or as recorded; None where neither."""
    from mtpd_mlx.checkpoints.format import read_config
    from mtpd_mlx.hub.pull import resolve_folder
    from mtpd_mlx.inspection.describe import recorded_acceptance

    if heads is None:
        return None, None
    if (file := probe.prompts) is None:
        found = recorded_acceptance(read_config(resolve_folder(checkpoint)).record)
        known = found is not None and len(found["car"]) == heads.num_heads  # fewer: of a part of the heads
        return (found["car"], "validation text, as recorded in training") if found and known else (None, None)
    from mtpd_mlx.measure.evaluate import measure
    from mtpd_mlx.model.generate import generate_greedy
    from mtpd_mlx.text.prompts import encode_prompts
    from mtpd_mlx.text.tokenizer import Tokenizer

    tokenizer = Tokenizer.from_folder(base.path)
    length = MeasureOptions.max_tokens
    room, chat = base.context_length - length, not probe.ignore_chat_template
    prompts = [p.tokens for p in encode_prompts(file, tokenizer, room, MOST_PROMPTS, chat=chat)]
    return measure(base, heads, generate_greedy(base, prompts, length, frozenset()))["car"], file.name


def summary(costs: list[Any], car: list[float] | None) -> dict[str, Any]:
    from mtpd_mlx.decoding.tuning.machine import device_kind, device_name
    from mtpd_mlx.decoding.tuning.prediction import best, break_even, profile, speedup

    rows = []
    for c in costs:
        depth = max(c.rounds)
        row: dict[str, Any] = {
            "context": c.context,
            "plan": c.plan,
            "plain_ms": 1000 * c.plain,
            "verify_ms": {m: 1000 * s for m, s in c.verify.items()},
            "verify_ratio": {m: s / c.verify[1] for m, s in c.verify.items()},
            "round_ms": {k: 1000 * s for k, s in c.rounds.items()},
            "head_ms": 1000 * c.head(min(4, depth)),
            "break_even": {k: break_even(c, k) for k in c.rounds},
            "best": {a: best(c, profile(a, depth)) for a in PROFILES},
        }
        if car is not None:
            usable = car[:depth]
            row |= {"predicted": {k: speedup(c, usable[:k]) for k in c.rounds}, "best_here": best(c, usable)}
        rows.append(row)
    return {"device": device_name(), "backend": device_kind(), "contexts": rows}


def describe(v: dict[str, Any]) -> str:
    from mtpd_mlx.text.tables import format_table

    how = (", --exact" if v["exact"] else "") + (f", --kv-bits {v['kv_bits']}" if v["kv_bits"] else "")
    lines = [f"{v['device']} ({v['backend']}){how}"]
    for row in v["contexts"]:
        ratio = " ".join(f"{m}:{r:.2f}" for m, r in row["verify_ratio"].items())
        lines.append(
            f"\ncontext {row['context']}, plan {row['plan']}: a token {row['plain_ms']:.2f} ms, a head {row['head_ms']:.2f} ms"
        )
        lines.append(f"T(m)/T(1)  {ratio}")
        table = []
        for k, ms in row["round_ms"].items():
            even = row["break_even"][k]
            cells = [f"{ms:.2f}", f"{ms / row['plain_ms']:.2f}", "never" if even is None else f"{even:.2f}"]
            table.append([str(k), *cells, *([f"{row['predicted'][k]:.2f}"] if "predicted" in row else [])])
        headers = ["drafts", "round ms", "in tokens", "break-even AR"]
        headers += ["speed-up of these heads"] if "predicted" in row else []
        lines.append(format_table(table, headers))
        good = ", ".join(f"AR {a}: {_choice(k, s)}" for a, (k, s) in row["best"].items())
        lines.append(f"best number of drafts: {good}")
        if "best_here" in row:
            lines.append(f"with these heads' CAR: {_choice(*row['best_here'])}")
    if v["car"] is not None:
        lines.append(f"\nthese heads' CAR ({v['car_source']}): " + " ".join(f"{c:.3f}" for c in v["car"]))
    elif v["num_heads"]:
        lines.append("\nthe speed-up of these heads needs their acceptance, which is not recorded: --prompts FILE measures it")
    return "\n".join(lines)


def _choice(drafts: int, speed: float) -> str:
    return f"K={drafts} ({speed:.2f}x)" if drafts else "plain"
