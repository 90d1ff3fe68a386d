"""A fine-tune's story: what becomes of a model's heads when mlx_lm.lora fine-tunes it, and what a refit of them takes.

    python -m tools.experiments.fine_tune --model M --heads H --data DATA --out OUT [--size full]

DATA: train.jsonl and valid.jsonl of "prompt" and "completion". Run it again to go on after an interruption. Stages: LoRA by
mlx_lm (OUT/adapters), the fused model, `mtpd refit` of H for several numbers of steps, heads trained anew for several, a refit
on base and adapter, `mtpd train --train lora` from H, a refit on text that the fine-tune itself wrote. After each stage its
heads are measured along the fine-tuned model's own greedy answers to the prompts of valid.jsonl. OUT/story.json holds the rows,
OUT/story.md the table. Runs of heads have the defaults of `mtpd`, and each its own number of steps and schedule of rates.
"""

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mtpd_mlx.checkpoints.format import read_config
from mtpd_mlx.files.atomic import write_json, write_text
from tools.experiments.refit_table import story_table, verdict
from tools.real_model.pipeline import DONE, PRODUCT, Stage, StageFailed, run_stages

PARTS = ("refit", "anew", "adapter", "joint", "muon", "own")
Figures = dict[str, Any]


@dataclass(frozen=True)
class Size:
    """Steps: of the LoRA, of each refit, of each training anew, of the refit on base and adapter, of
    --train lora, of the refits by Muon and on own text.
    rows x row_tokens: a step of the heads and of the LoRA. answers x answer_tokens: the fine-tune's own text to learn from;
    prompts x tokens: what heads are measured on."""

    lora: int
    refit: tuple[int, ...]
    anew: tuple[int, ...]
    adapter: int
    joint: int
    muon: int
    own: int
    rows: int
    row_tokens: int
    answers: int
    answer_tokens: int
    prompts: int
    tokens: int


SIZES = {
    "full": Size(300, (100, 25, 50, 200), (800, 200, 400, 100), 100, 300, 100, 100, 8, 512, 1000, 128, 80, 128),
    "tiny": Size(3, (3, 2), (4, 2), 2, 2, 2, 2, 2, 64, 16, 16, 3, 16),  # a rehearsal, on a CPU
}


@dataclass(frozen=True)
class Row:
    """Heads that are measured. `base`: the model whose answers they draft, fused, adapter, joint or start."""

    key: str
    label: str
    base: str
    heads: Path
    run: Path | None = None  # the training that made them; None: they came in


class Story:
    def __init__(self, args: argparse.Namespace, size: Size):
        self.model, self.heads, self.data, self.out, self.size = args.model, args.heads, args.data, args.out, size
        self.layers = args.num_layers
        self.file = self.out / "story.json"
        self.adapters, self.fused, self.joint = (self.out / name for name in ("adapters", "fused", "with-lora"))
        self.own, self.prompts = self.out / "own", self.out / "prompts" / "valid.jsonl"

    def stages(self, parts: list[str]) -> list[Stage]:
        n, fused = self.size, {"model": self.fused}
        anew = fused | {"num-heads": read_config(self.heads).num_heads}
        stages = [Stage("prompts", identity={"prompts": n.prompts, "answers": n.answers}, work=self.make_prompts)]
        stages += [self.measured(Row("start", "old heads on the old base", "start", self.heads)), self.lora(), self.fuse()]
        stages += [self.measured(Row("old", "old heads on the fine-tune", "fused", self.heads))]
        of_part = {
            "refit": [stage for steps in n.refit for stage in self.trained("refit", "refit", "fused", fused, steps)],
            "anew": [stage for steps in n.anew for stage in self.trained("anew", "anew", "fused", anew, steps)],
            "adapter": self.refit_adapter(),
            "joint": self.train_lora(),
            "muon": self.trained("muon", "refit by Muon", "fused", fused | {"optimizer": "muon"}, n.muon),
            "own": self.refit_on_own_text(),
        }
        return stages + [stage for part in parts for stage in of_part[part]]

    def refit_adapter(self) -> list[Stage]:
        given = {"model": self.model, "adapter-path": self.adapters}
        return self.trained("adapter", "refit on base and adapter", "adapter", given, self.size.adapter)

    def refit_on_own_text(self) -> list[Stage]:
        n, fused = self.size, {"model": self.fused}
        asked = self.out / "prompts" / "train.jsonl"
        given = fused | {"prompts": asked, "max-tokens": n.answer_tokens, "out": self.own}
        written = Stage("own-text", (*PRODUCT, "distill-data", *flags(given)), out=self.own)
        return [written, *self.trained("own", "refit on own text", "fused", fused | {"data": self.own}, n.own)]

    def lora(self) -> Stage:
        n = self.size
        given = {"model": self.model, "data": self.data, "iters": n.lora, "batch-size": n.rows, "max-seq-length": n.row_tokens}
        given |= {"learning-rate": 1e-4, "mask-prompt": True, "val-batches": 2, "steps-per-eval": n.lora, "seed": 0}
        given |= {"adapter-path": self.adapters, "save-every": n.lora, "num-layers": self.layers}
        return Stage("lora", (sys.executable, "-m", "mlx_lm", "lora", "--train", *flags(given)))

    def fuse(self) -> Stage:
        given = {"model": self.model, "adapter-path": self.adapters, "save-path": self.fused}
        return Stage("fuse", (sys.executable, "-m", "mlx_lm", "fuse", *flags(given)))

    def training(self, steps: int) -> Figures:
        n = self.size
        shape = {"batch-size": n.rows, "max-seq-length": n.row_tokens, "val-batches": -1, "mask-prompt": True}
        return {"data": self.data, "iters": steps} | shape | {"steps-per-eval": max(steps // 2, 1), "steps-per-report": 10}

    def trained(self, kind: str, label: str, base: str, given: Figures, steps: int) -> list[Stage]:
        name = f"{kind}-{steps}"
        out = self.out / name
        command = ("train",) if kind == "anew" else ("refit", str(self.heads))
        options = flags(self.training(steps) | given | {"out": out})
        row = Row(name, f"{label}, {steps} steps", base, out, out)
        return [Stage(name, (*PRODUCT, *command, *options), out=out), self.measured(row)]

    def train_lora(self) -> list[Stage]:
        steps = self.size.joint
        given = {"train": "lora", "model": self.model, "init-heads": self.heads, "out": self.joint}
        given |= {"num-layers": self.layers}
        stage = Stage("joint", (*PRODUCT, "train", *flags(self.training(steps) | given)), out=self.joint)
        return [stage, self.measured(Row("joint", f"--train lora, {steps} steps", "joint", self.joint, self.joint))]

    def make_prompts(self) -> None:
        """Prompts of the held-out rows to measure on, of rows to learn from."""
        for name, count in (("valid", self.size.prompts), ("train", self.size.answers)):
            rows = [json.loads(line) for line in (self.data / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
            if not all({"prompt", "completion"} <= row.keys() for row in rows):
                raise ValueError(f'{self.data}/{name}.jsonl: expected "prompt" and "completion" in every row')
            self.prompts.parent.mkdir(parents=True, exist_ok=True)
            asked = "".join(json.dumps({"prompt": row["prompt"]}) + "\n" for row in rows[:count])
            write_text(self.prompts.parent / f"{name}.jsonl", asked)

    def measured(self, row: Row) -> Stage:
        identity = {"heads": str(row.heads), "base": row.base, "prompts": self.size.prompts, "tokens": self.size.tokens}
        return Stage(f"measure-{row.key}", identity=identity, work=lambda: self.measure(row))

    def measure(self, row: Row) -> None:
        from mtpd_mlx.model.runtime import mx
        from tools.experiments.own_texts import Texts, measure_heads, open_base, write_texts

        places = {"fused": (self.fused, None), "start": (self.model, None)}
        places |= {"adapter": (self.model, self.adapters), "joint": (self.model, self.joint / "adapters")}
        model, adapter = places[row.base]
        base, file = open_base(str(model), adapter), self.out / f"texts-{row.base}.json"
        if not file.is_file():
            write_texts(base, [self.prompts], self.size.tokens, None, temp=0.0).save(file)
        found = measure_heads(base, row.heads, Texts.load(file))["greedy"]["all"]
        made = {"key": row.key, "label": row.label, "tokens": found["tokens"], "distinct4": found["distinct4"]}
        made |= {name: found[name] for name in ("tau", "car", "ar", "rounds")} | of_training(row.run)
        content = json.loads(self.file.read_text()) if self.file.is_file() else {"size": asdict(self.size), "rows": []}
        content["rows"] = [r for r in content["rows"] if r["key"] != row.key] + [made]
        content["stages"] = {name: done["seconds"] for name, done in json.loads((self.out / DONE).read_text()).items()}
        write_json(self.file, content)
        write_text(self.out / "story.md", f"{story_table(content['rows'])}\n{verdict(content['rows'])}\n")
        mx.clear_cache()  # the next training needs it
        print(f"  {row.label}: tau {made['tau']:.3f}", flush=True)


def flags(options: Figures) -> list[str]:
    found = []
    for name, value in options.items():
        found += [f"--{name}", *([] if value is True else [str(value)])]
    return found


def of_training(run: Path | None) -> Figures:
    """Steps and seconds of a training, and what its validation says along held-out rows: main loss, tau before and after."""
    if run is None:
        return {}
    lines = [json.loads(line) for line in (run / "train_log.jsonl").read_text().splitlines()]
    reports, checks = [r for r in lines if "loss" in r], [r for r in lines if "valid" in r]
    kept = read_config(run).record.get("eval", {})
    valid = kept.get("validation", checks[-1]["valid"])
    start = checks[0]["valid"]
    found = {"steps": reports[-1]["iter"], "kept": kept.get("iteration"), "seconds": reports[-1]["seconds"]}
    return found | {"main_loss": valid["main_loss"], "start_loss": start["main_loss"], "forced": [start["tau"], valid["tau"]]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="the base's folder")
    parser.add_argument("--heads", type=Path, required=True, help="heads of the base")
    parser.add_argument("--data", type=Path, required=True, help="folder with train.jsonl and valid.jsonl")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument("--size", choices=list(SIZES), default="full", help="default: %(default)s")
    parser.add_argument("--num-layers", type=int, default=16, help="last layers that get LoRA (default: %(default)s; -1: all)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what of it to run (default: all)")
    args = parser.parse_args()
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        run_stages(Story(args, SIZES[args.size]).stages(args.parts), args.out, lambda line: print(line, flush=True))
    except StageFailed as error:
        print(f"fine_tune: {error}", file=sys.stderr)
        return error.status
    except (ValueError, OSError) as error:
        print(f"fine_tune: error: {error}", file=sys.stderr)
        return 1
    print((args.out / "story.md").read_text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
