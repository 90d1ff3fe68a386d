"""`run_demo`: the whole path on each model (train, extend, measure, export, decode on two runtimes).
Called by `mtpd demo`.

The real model comes first and is what the report leads with. Where it cannot be had, the bundled small
one stands alone, and the reason is said.
"""

import logging
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from mtpd_mlx.demo.measuring import Sets, acceptance, exact_folder, export_all, measure_speed, samples
from mtpd_mlx.demo.models import BUNDLED, SMOLLM2, DemoModel
from mtpd_mlx.demo.parts import Parts
from mtpd_mlx.demo.training import extend_arm, make_cache, train_arm
from mtpd_mlx.measure.acceptance import ForcedBatch, teacher_force
from mtpd_mlx.measure.evaluate import repetition
from mtpd_mlx.measure.parity import compare
from mtpd_mlx.model.base import Base, load_base
from mtpd_mlx.model.generate import Generation, generate_greedy
from mtpd_mlx.model.heads import MTPHeads
from mtpd_mlx.model.load_save import load_heads, versions
from mtpd_mlx.model.runtime import bound_queue, mx
from mtpd_mlx.options.train import RunConfig
from mtpd_mlx.text.prompts import EncodedPrompt, encode_prompts, read_prompts
from mtpd_mlx.text.tokenizer import Tokenizer
from mtpd_mlx.train.extend import loop_heads

logger = logging.getLogger(__name__)
PARTS = "parts"
ROOM = 1_200_000_000  # bytes that the real model's part writes at most: model, cache, resume points, exports
Say = Callable[[str], None]
Curves = dict[str, list[dict[str, Any]]]


@dataclass
class Walk:
    """One model's way through the demo. `folder` takes what it makes; parts that an interrupted run had finished are kept."""

    model: DemoModel
    base_folder: Path
    folder: Path
    parts: Parts
    say: Say
    arms: dict[str, dict[str, Any]] = field(default_factory=dict)
    by_set: dict[str, Any] = field(default_factory=dict)
    curves: Curves = field(default_factory=dict)

    @cached_property
    def base(self) -> Base:
        """In float32 on every device: what both runtimes compute alike."""
        return load_base(str(self.base_folder), dequantize=True, dtype=mx.float32)

    @cached_property
    def heads(self) -> MTPHeads:
        return load_heads(self.model.heads, self.base)[0]

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer.from_folder(self.base_folder)

    @cached_property
    def prompts(self) -> list[EncodedPrompt]:
        """Of all sets, taking turns, so that the first few are of every kind."""
        longest, count = self.base.context_length - 2 * self.model.plan.eval_tokens, self.model.plan.prompts
        files = self.model.prompts.values()
        sets = [encode_prompts(file, self.tokenizer, longest, count) for file in files]
        return [prompt for row in zip(*sets, strict=True) for prompt in row]

    @cached_property
    def sets(self) -> Sets:
        names = list(self.model.prompts)
        return {name: list(range(n, len(self.prompts), len(names))) for n, name in enumerate(names)}

    @cached_property
    def texts(self) -> list[Generation]:
        """The base's own greedy continuations, which every arm is measured on."""
        prompts = [p.tokens for p in self.prompts]

        def write() -> dict[str, Any]:
            self.say(f"{self.model.name}: writes its own greedy continuations of {len(prompts)} prompts")
            made = generate_greedy(self.base, prompts, self.model.plan.eval_tokens, self.tokenizer.eos_token_ids)
            return {"tokens": [text.tokens for text in made]}

        return [Generation(*pair) for pair in zip(prompts, self.parts.of("texts", write)["tokens"], strict=True)]

    @cached_property
    def forced(self) -> list[ForcedBatch]:
        return teacher_force(self.base, self.texts)

    def measure(self, name: str, heads: Callable[[], tuple[MTPHeads, dict[str, Any], list[dict[str, Any]]]]) -> None:
        """An arm: its figures, steps and seconds, and curve."""

        def make() -> dict[str, Any]:
            _ = self.texts
            made, cost, curve = heads()
            figures, sets = acceptance(self.base, made, self.texts, self.forced, self.sets)
            return {"figures": figures | {"steps": 0, "seconds": 0.0} | cost, "sets": sets, "curve": curve}

        part = self.parts.of(name, make)
        self.arms[name] = part["figures"] | {"distinct4": repetition(self.texts)}
        self.by_set[name] = part["sets"]
        if part["curve"]:
            self.curves[name] = part["curve"]


def from_scratch(walk: Walk) -> None:
    """The arms ce_short and mtpd_short."""
    plan = walk.model.plan
    if plan.cached:

        def make() -> dict[str, Any]:
            walk.say(f"{walk.model.name}: a cache of its states over a little text of its own, to train from")
            length, rows = plan.rows.max_seq_length, plan.rows.batch_size
            return make_cache(walk.base_folder, walk.model.data, walk.folder / "cache", rows, length)

        walk.parts.of("cache", make)
    much = f"{plan.short.iters} steps" if plan.seconds is None else f"{plan.seconds:.0f} s"
    for name, loss in (("ce_short", "ce"), ("mtpd_short", "mtpd")):

        def train(name: str = name, loss: str = loss) -> tuple[MTPHeads, dict[str, Any], list[dict[str, Any]]]:
            walk.say(f"{walk.model.name}: trains 4 heads from scratch, {much}, loss {loss} ({name})")
            heads, curve = train_arm(walk.model, walk.base_folder, walk.folder / name, loss)
            return heads, {"steps": curve[-1]["iter"], "seconds": curve[-1]["seconds"]}, curve

        walk.measure(name, train)


def shipped_and_longer(walk: Walk) -> None:
    """The arms mtpd, mtpd_looped and mtpd_extended."""
    out = walk.folder / "mtpd_extended"

    def extend() -> tuple[MTPHeads, dict[str, Any], list[dict[str, Any]]]:
        walk.say(f"{walk.model.name}: trains the heads that were copied, {walk.model.plan.extension.iters} steps")
        cost, curve = extend_arm(walk.model, walk.base_folder, out)
        return load_heads(out, walk.base)[0], cost, curve

    walk.say(f"{walk.model.name}: the shipped MTP-D heads, and looped from 4 to 8")
    walk.measure("mtpd", lambda: (walk.heads, {}, []))
    walk.measure("mtpd_looped", lambda: (loop_heads(walk.base, walk.heads, 8), {}, []))
    walk.measure("mtpd_extended", extend)


def both_runtimes(walk: Walk) -> dict[str, Any]:
    """Parity, speed and samples."""
    from mtpd_onnx.runtime.open import open_folder

    plan, tokenizer, prompts = walk.model.plan, walk.tokenizer, walk.prompts

    def export() -> dict[str, Any]:
        walk.say(f"{walk.model.name}: export to ONNX")
        folders = export_all(walk.model, walk.base_folder, walk.folder)
        return {name: str(folder.relative_to(walk.folder)) for name, folder in folders.items()}

    def parity() -> dict[str, Any]:
        walk.say(f"{walk.model.name}: the same prompts on both runtimes, token by token")
        exact, eos = exact_folder(folders), tokenizer.eos_token_ids
        few = prompts[: plan.parity_prompts]
        return compare(walk.base, walk.heads, exact, few, plan.parity_tokens, eos).to_dict()

    def speed() -> dict[str, Any]:
        walk.say(f"{walk.model.name}: speed of plain and speculative decoding, interleaved")
        return measure_speed(walk.model, walk.base, walk.heads, folders, prompts)

    def marked() -> dict[str, Any]:
        backend = open_folder(exact_folder(folders), provider="cpu", num_draft_tokens=walk.heads.num_heads)
        few = prompts[: max(3, len(walk.sets))]
        return {"samples": samples(backend, tokenizer, few, asked(walk.model), plan.eval_tokens)}

    folders = {name: walk.folder / place for name, place in walk.parts.of("export", export).items()}
    found = {"parity": walk.parts.of("parity", parity), "speed": walk.parts.of("speed", speed)}
    return found | walk.parts.of("samples", marked)


def asked(model: DemoModel) -> dict[str, str]:
    """Prompt id -> what the user says in it, of prompts that are single questions."""
    return {p.id: p.text for file in model.prompts.values() for p in read_prompts(file) if p.text}


def run_model(model: DemoModel, base_folder: Path, out: Path, say: Say) -> tuple[dict[str, Any], Curves]:
    """Everything with one model, whose parts go below `out`: what the report says of it, and the loss curves."""
    folder = out / model.folder
    walk = Walk(model, base_folder, folder, Parts(out / PARTS / model.folder), say)
    from_scratch(walk)
    shipped_and_longer(walk)
    found = both_runtimes(walk)
    plan, trained = model.plan, walk.model.plan.rows
    record = load_heads(model.heads, walk.base)[1].record["eval"]["validation"]
    conditions = {
        "seed": RunConfig.seed,
        "dtype": "float32",
        "prompts": len(walk.prompts),
        "tokens_per_prompt": plan.eval_tokens,
        "train_rows": f"{trained.batch_size} x {trained.max_seq_length} tokens a step",
    }
    report = {
        "arms": walk.arms,
        "sets": walk.by_set["mtpd"],
        "base": {"valid_loss": record["main_loss"], "distinct4": repetition(walk.texts)},
        **found,
        "conditions": conditions | model.facts,
    }
    return report, walk.curves


def run_demo(
    out: Path, say: Say, real: DemoModel | None = SMOLLM2, bundled: DemoModel = BUNDLED
) -> tuple[dict[str, Any], Curves]:
    """The report, and the loss curves of the model that it leads with; demo/report.py writes them. `real` None: not wanted."""
    bound_queue()
    curves: Curves | None = None
    found: dict[str, Any] = {"real": None, "real_missing": "not asked for (--bundled)" if real is None else None}
    if real is not None:
        say(f"{real.name}: fetching it, or finding it in the cache")
        try:
            folder = real.get(place_for(out / real.folder / "model"))
        except ValueError as error:  # no network, other contents than pinned, no room
            found["real_missing"] = str(error)
            logger.warning("%s; going on with the bundled small model alone", error)
        else:
            details, curves = run_model(real, folder, out, say)
            found["real"] = summary(real, details)
            bundled = bundled.shortened()
    report, own = run_model(bundled, bundled.get(out), out, say)
    return report | found | {"versions": all_versions(), "machine": machine()}, own if curves is None else curves


def place_for(folder: Path) -> Path:
    """`folder`. ValueError where the disk has no room for the real model's part."""
    room = shutil.disk_usage(next(p for p in folder.parents if p.exists())).free
    if room < ROOM and not folder.exists():
        raise ValueError(f"--out {folder}: {room / 1e9:.1f} GB are free, the real model takes {ROOM / 1e9:.1f} GB")
    return folder


def summary(model: DemoModel, details: dict[str, Any]) -> dict[str, Any]:
    """`real` of report.json: the figures of the shipped heads first, then all that was found."""
    arm, speed, parity = details["arms"]["mtpd"], details["speed"], details["parity"]
    return {
        "model": model.name,
        "tau": arm["tau"],
        "car": arm["car"],
        "distinct4": arm["distinct4"],
        "sets": details["sets"],
        "onnx": {
            "plain": speed["onnx_plain"],
            "mtp": speed["onnx_mtpd"],
            "num_draft_tokens": speed["onnx_num_draft_tokens"],
            "precision": speed["onnx_precision"],
        },
        "mlx": {"plain": speed["mlx_plain"], "mtp": speed["mlx_mtpd"]}
        | ({"stock": speed["mlx_stock"]} if "mlx_stock" in speed else {}),
        "parity": parity,
    } | {name: details[name] for name in ("arms", "base", "speed", "samples", "conditions")}


def all_versions() -> dict[str, str]:
    import platform
    from importlib.metadata import version

    return versions() | {name: version(name) for name in ("onnx", "onnxruntime")} | {"python": platform.python_version()}


def machine() -> dict[str, Any]:
    import os
    import platform

    from mtpd_mlx.model.blas import preload_blas

    return {
        "system": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "mlx_device": str(mx.default_device()),
        "blas": preload_blas().library,
        "date": time.strftime("%Y-%m-%d"),
    }
