"""The demo's measurements: acceptance by set, exports, parity, speed, and texts marked by who wrote them.
Called by demo/run.py."""

from pathlib import Path
from typing import Any

from mtpd_mlx.decoding.bench.arms import stock_arm
from mtpd_mlx.decoding.open import open_choosing, open_decoder
from mtpd_mlx.demo.models import DemoModel
from mtpd_mlx.measure.acceptance import ForcedBatch, match_tables
from mtpd_mlx.measure.evaluate import repetition, summarise
from mtpd_mlx.model.base import Base
from mtpd_mlx.model.generate import Generation
from mtpd_mlx.model.heads import MTPHeads
from mtpd_mlx.speculative.bench import backend_arm, identical, interleave
from mtpd_mlx.speculative.loop import generate
from mtpd_mlx.speculative.protocol import Backend
from mtpd_mlx.speculative.sampling import Sampling
from mtpd_mlx.text.prompts import EncodedPrompt
from mtpd_mlx.text.tokenizer import Tokenizer

Sets = dict[str, list[int]]  # set -> numbers of its texts


def acceptance(
    base: Base, heads: MTPHeads, texts: list[Generation], forced: list[ForcedBatch], sets: Sets
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Figures over all texts, and by set."""
    tables = match_tables(base, heads, texts, forced)
    by_set = {}
    for name, numbers in sets.items():
        own = [texts[i] for i in numbers]
        figures = summarise(own, [tables[i] for i in numbers], heads.num_heads)
        by_set[name] = figures | {"prompts": len(own), "distinct4": repetition(own)}
    return summarise(texts, tables, heads.num_heads), by_set


def export_all(model: DemoModel, base: Path, out: Path) -> dict[str, Path]:
    """One folder for each export of the plan, of those heads and, if it says so, of the extended ones."""
    from mtpd_onnx.export.export import export_checkpoint

    from mtpd_mlx.options.export import ExportOptions

    folders = {}
    for name, options in model.plan.exports.items():
        folders[name] = out / "onnx" / name
        export_checkpoint(model.heads, folders[name], ExportOptions(model=str(base), overwrite=True, **options))
    if model.plan.longest:
        folders["k8"] = out / "onnx" / "k8"
        export_checkpoint(out / "mtpd_extended", folders["k8"], ExportOptions(overwrite=True))
    return folders


def exact_folder(folders: dict[str, Path]) -> Path:
    """The one of the shipped heads in float32, all of them: its tokens must be MLX's."""
    return folders.get("fp32") or folders["k4"]


def measure_speed(
    model: DemoModel, base: Base, heads: MTPHeads, folders: dict[str, Path], prompts: list[EncodedPrompt]
) -> dict[str, Any]:
    """Tokens per second, medians over interleaved repeats. Each arm decodes the same prompts, to the same length. Both
    runtimes choose their rounds as mtpd generate and mtpd-onnx generate do; `chosen`: what they verified."""
    from mtpd_onnx.manifest import read_manifest
    from mtpd_onnx.runtime.open import open_folder

    plan, tokens = model.plan, [p.tokens for p in prompts[: model.plan.speed_prompts]]
    onnx = {name: open_folder(folder, provider="cpu", choose=True) for name, folder in folders.items()}
    trial = {name: backend_arm(name, backend) for name, backend in onnx.items()}
    interleave(list(trial.values()), tokens, plan.speed_tokens, repeats=1)
    by_folder = {name: arm.tokens_per_second for name, arm in trial.items()}
    best = max(by_folder, key=by_folder.__getitem__)
    ours = open_choosing(base, heads)  # as mtpd generate decodes
    arms = {
        "mlx_plain": backend_arm("mlx_plain", open_decoder(base, None), plain=True),
        "mlx_mtpd": backend_arm("mlx_mtpd", ours),
        "onnx_plain": backend_arm("onnx_plain", open_folder(folders[best], provider="cpu", plain=True), plain=True),
        "onnx_mtpd": backend_arm("onnx_mtpd", onnx[best]),
    }
    if plan.stock:
        arms["mlx_stock"] = stock_arm(base, Sampling())
    interleave(list(arms.values()), tokens, plan.speed_tokens, repeats=plan.speed_repeats)
    return {name: arm.tokens_per_second for name, arm in arms.items()} | {
        "mlx_num_draft_tokens": ours.num_draft_tokens,
        "onnx_num_draft_tokens": onnx[best].num_draft_tokens,
        "onnx_precision": precision_of(read_manifest(folders[best])),
        "onnx_folder": best.removeprefix("k"),
        "onnx_by_k": {name.removeprefix("k"): value for name, value in by_folder.items()},
        "chosen": {name: arm.stats.to_dict()["chosen"] for name, arm in arms.items() if arm.stats and name.endswith("mtpd")},
        "same_text": {kind: identical(arms[f"{kind}_plain"], arms[f"{kind}_mtpd"]) for kind in ("mlx", "onnx")},
        "samples": {name: [run.tokens_per_second for run in arm.runs] for name, arm in arms.items()},
    }


def precision_of(manifest: Any) -> str:
    return (
        manifest.precision
        if manifest.precision == manifest.activations
        else f"{manifest.precision}, {manifest.activations} activations"
    )


def samples(
    backend: Backend, tokenizer: Tokenizer, prompts: list[EncodedPrompt], asked: dict[str, str], max_tokens: int
) -> list[dict[str, Any]]:
    """Texts in pieces, each marked as accepted draft or as the main head's own token. `asked`: by prompt id what a user said,
    where that is not the beginning of the text but a question to it."""
    shown = []
    for prompt in prompts:
        backend.rewind_to(0)
        pieces: list[dict[str, str]] = []
        for chunk in generate(backend, prompt.tokens, max_tokens=max_tokens, eos_token_ids=tokenizer.eos_token_ids):
            for i, token in enumerate(chunk.tokens):
                pieces.append({"text": tokenizer.decode([token]), "kind": "draft" if i < chunk.num_drafted else "main"})
        said = asked.get(prompt.id)
        shown.append({"prompt": said or tokenizer.decode(prompt.tokens), "chat": said is not None, "pieces": pieces})
    return shown
