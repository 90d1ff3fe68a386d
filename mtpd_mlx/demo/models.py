"""`BUNDLED` and `SMOLLM2`, the demo's two models, and the `Plan` of what is done with each.
Called by demo/run.py. Both together take under six minutes on two CPU cores."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mtpd_mlx.hub.packages import SMOLLM2 as SMOLLM2_PACKAGE
from mtpd_mlx.hub.packages import fetch_package
from mtpd_mlx.options.train import DataConfig, OptimConfig

ASSETS = Path(__file__).parent.parent / "assets" / "demo"


@dataclass(frozen=True)
class Plan:
    """short, extension: the runs from scratch and of the new heads, by AdamW: on a CPU Muon's own products take longer than
    steps of so few tokens. seconds: instead of `short`'s number of steps, how long the runs from scratch may take, so that CE
    and MTP-D get equal time. cached: train from a distillation cache. exports: name -> options of an export; longest: also one
    of the extended heads. stock: time stock mlx_lm too."""

    prompts: int  # of each set, to measure acceptance on
    eval_tokens: int
    parity_prompts: int
    parity_tokens: int
    speed_prompts: int
    speed_tokens: int
    speed_repeats: int
    short: OptimConfig
    extension: OptimConfig
    rows: DataConfig
    extension_rows: int  # rows a step
    exports: dict[str, dict[str, Any]]
    longest: bool = False
    seconds: float | None = None
    cached: bool = False
    draft_vocab: int | None = None  # of the runs from scratch
    stock: bool = False


@dataclass(frozen=True)
class DemoModel:
    """`folder`: where its parts go, below --out. `get(folder)` gives the base's folder, fetched and imported where it must be;
    ValueError in one line where it cannot be had. `heads`: the shipped ones. `prompts`: set -> file. `data`: to train on."""

    name: str
    folder: str
    get: Callable[[Path], Path]
    heads: Path
    prompts: dict[str, Path]
    data: Path
    plan: Plan
    facts: dict[str, str] = field(default_factory=dict)  # for the report

    def shortened(self) -> "DemoModel":
        """The same with less training and timing, for where it is not what the demo is about."""
        plan = self.plan
        less = replace(
            plan,
            speed_repeats=min(plan.speed_repeats, 2),
            short=replace(plan.short, iters=plan.short.iters // 2),
            extension=replace(plan.extension, iters=plan.extension.iters // 2),
            longest=False,
        )
        return replace(self, plan=less)


def import_smollm2(folder: Path) -> Path:
    """Fetches the package, or finds it in the cache, and imports its GGUF file with the published integers kept."""
    from mtpd_mlx.checkpoints.gguf.write import import_gguf

    file = fetch_package(SMOLLM2_PACKAGE)
    if not (folder / "model.safetensors").is_file():  # a folder is put in place whole
        import_gguf(file, folder)
    return folder


BUNDLED = DemoModel(
    name="bundled small model",
    folder=".",
    get=lambda folder: ASSETS / "base",
    heads=ASSETS / "heads",
    prompts={"service": ASSETS / "text" / "prompts.jsonl"},
    data=ASSETS / "text",
    plan=Plan(
        prompts=48,
        eval_tokens=64,
        parity_prompts=45,
        parity_tokens=48,
        speed_prompts=3,
        speed_tokens=48,
        speed_repeats=3,
        short=OptimConfig(optimizer="adamw", iters=24, learning_rate=2e-3, warmup=5),
        extension=OptimConfig(optimizer="adamw", iters=16, learning_rate=1e-3, warmup=2),
        rows=DataConfig(max_seq_length=128, batch_size=4),
        extension_rows=4,
        exports={"k4": {}},
        longest=True,
    ),
)

SMOLLM2 = DemoModel(
    name="SmolLM2-135M-Instruct",
    folder="smollm2",
    get=import_smollm2,
    heads=ASSETS.parent / "smollm2-135m-instruct",
    prompts={name: ASSETS / "chat" / f"{name}.jsonl" for name in ("questions", "code", "summary", "maths")},
    data=ASSETS / "chat" / "own",
    plan=Plan(
        prompts=4,
        eval_tokens=64,
        parity_prompts=8,
        parity_tokens=40,
        speed_prompts=4,
        speed_tokens=36,
        speed_repeats=1,
        short=OptimConfig(optimizer="adamw", learning_rate=2e-3, warmup=4, min_lr_ratio=1.0),
        extension=OptimConfig(optimizer="adamw", iters=8, learning_rate=2e-4, warmup=2),
        rows=DataConfig(max_seq_length=128, batch_size=4),
        extension_rows=2,
        exports={"fp32": {}, "int4": {"precision": "int4", "activations": "int8"}},
        seconds=20.0,
        cached=True,
        draft_vocab=4096,
        stock=True,
    ),
    facts={
        "model": "SmolLM2-135M-Instruct (Apache-2.0), the published Q4_1 integers, held in float32",
        "from": f"package {SMOLLM2_PACKAGE} on PyPI, sha256 checked, nothing of it executed",
    },
)
