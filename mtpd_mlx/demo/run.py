"""The whole path on the bundled model: train, extend, measure, export, decode on two runtimes, report."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mtpd_mlx.decoding.open import open_decoder
from mtpd_mlx.measure.acceptance import teacher_force
from mtpd_mlx.measure.evaluate import measure, repetition
from mtpd_mlx.measure.parity import compare, decode_all
from mtpd_mlx.model.base import Base, load_base
from mtpd_mlx.model.generate import generate_greedy
from mtpd_mlx.model.heads import MTPHeads
from mtpd_mlx.model.load_save import load_checkpoint, versions
from mtpd_mlx.model.runtime import bound_queue
from mtpd_mlx.options.train import (
    DataConfig,
    HeadsConfig,
    LoraConfig,
    LossConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    TrainOptions,
)
from mtpd_mlx.speculative.loop import generate
from mtpd_mlx.speculative.protocol import Backend
from mtpd_mlx.text.prompts import encode_prompts
from mtpd_mlx.text.tokenizer import Tokenizer
from mtpd_mlx.train.extend import extend_checkpoint, loop_heads
from mtpd_mlx.train.run import Outcome, train
from mtpd_mlx.train.screen import ProgressBar
from mtpd_mlx.train.setup import gather

ASSETS = Path(__file__).parent.parent / "assets" / "demo"
SHORT = OptimConfig(iters=24, learning_rate=2e-3, warmup=5)
EXTENSION = OptimConfig(iters=16, learning_rate=1e-3, warmup=2)
DATA = DataConfig(data=(str(ASSETS / "text"),), max_seq_length=128, batch_size=4)
PROMPTS, EVAL_TOKENS = 48, 64
PARITY_PROMPTS, PARITY_TOKENS = 45, 48
SPEED_PROMPTS, SPEED_TOKENS, SPEED_REPEATS = 3, 48, 3


@dataclass
class Demo:
    """State that the steps share. `say` prints a heading before each."""

    out: Path
    say: Callable[[str], None]

    def __post_init__(self) -> None:
        self.base: Base = load_base(str(ASSETS / "base"), dequantize=True)
        self.tokenizer = Tokenizer.from_folder(ASSETS / "base")
        prompts = ASSETS / "text" / "prompts.jsonl"
        self.prompts = encode_prompts(prompts, self.tokenizer, self.base.context_length - 2 * EVAL_TOKENS, PROMPTS)
        self.arms: dict[str, dict[str, Any]] = {}
        self.curves: dict[str, list[dict[str, Any]]] = {}

    @property
    def eos(self) -> frozenset[int]:
        return self.tokenizer.eos_token_ids

    def options(self, name: str, loss: str, optim: OptimConfig) -> TrainOptions:
        run = RunConfig(out=str(self.out / name), steps_per_eval=0, val_batches=4, save_every=0, overwrite=True)
        model = ModelConfig(model=str(ASSETS / "base"), dequantize=True)
        return TrainOptions(
            model, HeadsConfig(), LossConfig(loss=loss), DATA, optim, replace(run, steps_per_report=2), LoraConfig()
        )

    def write_texts(self) -> None:
        """The base's own greedy continuations, which every arm is measured on."""
        self.texts = generate_greedy(self.base, [p.tokens for p in self.prompts], EVAL_TOKENS, self.eos)
        self.forced = teacher_force(self.base, self.texts)
        self.distinct4 = repetition(self.texts)

    def arm(self, name: str, heads: MTPHeads, steps: int = 0, seconds: float = 0.0) -> None:
        figures = measure(self.base, heads, self.texts, self.forced)
        self.arms[name] = figures | {"steps": steps, "seconds": seconds, "distinct4": self.distinct4}


def run_demo(out: Path, say: Callable[[str], None]) -> tuple[dict[str, Any], dict[str, list[dict[str, Any]]]]:
    """Runs everything; returns the report and the loss curves (demo/report.py writes them)."""
    bound_queue()
    demo = Demo(out, say)
    _, shipped, config = load_checkpoint(ASSETS / "heads", dequantize=True)
    say(f"The main model writes its own greedy continuations of {len(demo.prompts)} held-out prompts")
    demo.write_texts()
    for name, loss in (("ce_short", "ce"), ("mtpd_short", "mtpd")):
        say(f"Training 4 heads from scratch, {SHORT.iters} steps, loss {loss} ({name})")
        heads, outcome = train_arm(demo, name, loss)
        demo.arm(name, heads, outcome.progress.iteration, outcome.progress.seconds)
    say("The shipped MTP-D heads, looped from 4 to 8: copied only, then the new ones trained")
    demo.arm("mtpd", shipped)
    demo.arm("mtpd_looped", loop_heads(demo.base, shipped, 8))
    extended, outcome = extend_arm(demo)
    demo.arm("mtpd_extended", extended, outcome.progress.iteration, outcome.progress.seconds)
    say("Export to ONNX, and the same prompts on both runtimes")
    folders = export_all(out, extended.num_heads)
    parity = compare(demo.base, shipped, folders[4], demo.prompts[:PARITY_PROMPTS], PARITY_TOKENS, demo.eos)
    say("Speed: plain and speculative decoding, interleaved")
    speed = measure_speed(demo, shipped, extended, folders)
    valid = config.record["eval"]["validation"]
    report = {
        "arms": demo.arms,
        "base": {"valid_loss": valid["main_loss"], "distinct4": demo.distinct4},
        "parity": parity.to_dict(),
        "speed": speed,
        "samples": samples(demo, shipped),
        "versions": all_versions(),
        "machine": machine(),
        "conditions": {
            "seed": RunConfig.seed,
            "dtype": "float32",
            "prompts": len(demo.prompts),
            "tokens_per_prompt": EVAL_TOKENS,
            "train_rows": f"{DATA.batch_size} x {DATA.max_seq_length} tokens a step",
        },
    }
    return report, demo.curves


def train_arm(demo: Demo, name: str, loss: str) -> tuple[MTPHeads, Outcome]:
    """New heads on the frozen base. The arm is the run's last state, so that equal steps are compared."""
    options = demo.options(name, loss, SHORT)
    ingredients = gather(options)
    with ProgressBar(options.optim.iters) as bar:
        outcome = train(options, ingredients, bar.show)
    demo.curves[name] = outcome.curve
    return ingredients.heads, outcome


def extend_arm(demo: Demo) -> tuple[MTPHeads, Outcome]:
    options = demo.options("mtpd_extended", "mtpd", EXTENSION)
    with ProgressBar(options.optim.iters) as bar:
        ((_, outcome),) = extend_checkpoint(ASSETS / "heads", 8, options, lambda count: bar.show)
    demo.curves["mtpd_extended"] = outcome.curve
    _, heads, _ = load_checkpoint(demo.out / "mtpd_extended", dequantize=True)
    return heads, outcome


def export_all(out: Path, longest: int) -> dict[int, Path]:
    """One folder per number of drafts that the speed measurement tries."""
    from mtpd_onnx.export.export import export_checkpoint

    from mtpd_mlx.options.export import ExportOptions

    folders = {}
    for k in (2, 3, 4, longest):
        checkpoint = ASSETS / "heads" if k <= 4 else out / "mtpd_extended"
        folders[k] = out / "onnx" / f"k{k}"
        export_checkpoint(checkpoint, folders[k], ExportOptions(num_draft_tokens=k, overwrite=True))
    return folders


def measure_speed(demo: Demo, shipped: MTPHeads, extended: MTPHeads, folders: dict[int, Path]) -> dict[str, Any]:
    """Tokens per second, medians over interleaved repeats. Each arm decodes the same prompts."""
    from mtpd_onnx.runtime.open import open_folder

    prompts = demo.prompts[:SPEED_PROMPTS]
    onnx: dict[int, Backend] = {k: open_folder(folder, provider="cpu") for k, folder in folders.items()}
    by_k = {k: decode_all(b, prompts, SPEED_TOKENS, demo.eos)[1].tokens_per_second for k, b in onnx.items()}
    best = max(by_k, key=by_k.__getitem__)
    mlx_drafts = min(best, 4)
    arms: dict[str, tuple[Backend, bool]] = {
        "mlx_plain": (open_decoder(demo.base, None), True),
        "mlx_mtpd": (open_decoder(demo.base, shipped, num_draft_tokens=mlx_drafts), False),
        "onnx_plain": (open_folder(folders[best], provider="cpu", plain=True), True),
        "onnx_mtpd": (onnx[best], False),
    }
    samples: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(SPEED_REPEATS):
        for name, (backend, plain) in arms.items():
            stats = decode_all(backend, prompts, SPEED_TOKENS, demo.eos, plain)[1]
            samples[name].append(stats.tokens_per_second)
    medians = {name: statistics.median(values) for name, values in samples.items()}
    return medians | {
        "mlx_num_draft_tokens": mlx_drafts,
        "onnx_num_draft_tokens": best,
        "onnx_by_k": {str(k): v for k, v in by_k.items()},
        "samples": samples,
    }


def samples(demo: Demo, heads: MTPHeads, count: int = 3) -> list[dict[str, Any]]:
    """A few texts in pieces, each marked as accepted draft or as the main head's own token."""
    backend, shown = open_decoder(demo.base, heads), []
    for prompt in demo.prompts[:count]:
        backend.rewind_to(0)
        pieces: list[dict[str, str]] = []
        for chunk in generate(backend, prompt.tokens, max_tokens=EVAL_TOKENS, eos_token_ids=demo.eos):
            for i, token in enumerate(chunk.tokens):
                pieces.append({"text": demo.tokenizer.decode([token]), "kind": "draft" if i < chunk.num_drafted else "main"})
        shown.append({"prompt": demo.tokenizer.decode(prompt.tokens), "pieces": pieces})
    return shown


def all_versions() -> dict[str, str]:
    import platform
    from importlib.metadata import version

    return versions() | {name: version(name) for name in ("onnx", "onnxruntime")} | {"python": platform.python_version()}


def machine() -> dict[str, Any]:
    import os
    import platform

    from mtpd_mlx.model.blas import preload_blas
    from mtpd_mlx.model.runtime import mx

    return {
        "system": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "mlx_device": str(mx.default_device()),
        "blas": preload_blas().library,
        "date": time.strftime("%Y-%m-%d"),
    }
