"""Every way to decode a model that this machine has, timed beside each other: plain, heads, and other projects' decoders.

    python -m tools.benchmark OUT --onnx FOLDER ... --checkpoint HEADS --gguf FILE --genai PEER --prompts FILE ...
    python -m tools.benchmark OUT --onnx FOLDER --gguf FILE --lengths 2048 8000 --text FILE     # long contexts
    python -m tools.benchmark OUT --report                                                     # the table again

Every arm runs in a process of its own; they take turns prompt by prompt, one at a time. Every text is a line of OUT/runs.jsonl,
and the same command goes on where it was killed. OUT/summary.json holds the figures and the conditions. Texts run to the length
that --max-tokens says: no token ends them. tools/benchmark/prepare.py makes the exports and the peer's folder.
tools/benchmark/sets/edits.jsonl is a prompt set: texts to quote, edit and summarise, where prompt lookup drafts most. Run it
from the repository root.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from mtpd_onnx.peer.process import Child

from mtpd_mlx.files.atomic import write_json
from mtpd_mlx.options.base import DTYPES, ComputeOptions
from mtpd_mlx.text.messages import dot
from mtpd_mlx.text.tokenizer import Tokenizer
from tools.benchmark import prompts, runs
from tools.benchmark.arms import Arm, Common, choose, named, of_checkpoint, of_folder, of_peers
from tools.benchmark.conditions import conditions
from tools.benchmark.report import describe, summary
from tools.paths import python_path

SETTINGS, SUMMARY = "settings.json", "summary.json"
SPARE = 64  # positions beside prompt and text: rounds verify beyond the end
IDENTITY = ("prompts", "lengths", "text", "limit", "max_tokens", "sampling", "num_threads", "ignore_chat_template")


def parse(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tools.benchmark", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("out", type=Path, help="folder of the results; the same command goes on in it")
    add("--onnx", type=Path, nargs="+", default=[], metavar="FOLDER", help="folders of mtpd export")
    add("--checkpoint", type=Path, metavar="HEADS", help="heads, or a base alone, to run with MLX")
    add("--model", metavar="MODEL", help="the base of --checkpoint, where it is not where that says")
    add("--dtype", choices=DTYPES, default=ComputeOptions.dtype, help="that MLX computes in (default: %(default)s)")
    add("--genai", type=Path, nargs="+", default=[], metavar="PEER", help="folders of onnxruntime-genai")
    add("--gguf", type=Path, nargs="+", default=[], metavar="FILE", help="files that llama.cpp runs")
    add(
        "--arms",
        nargs="+",
        metavar="WORD",
        help="only arms with one of these in their names, and their plain ones",
    )
    add("--prompts", type=Path, nargs="+", default=[], metavar="FILE", help="a prompt set each")
    add("--lengths", type=int, nargs="+", default=[], metavar="N", help="sets of prompts of so many tokens, cut out of --text")
    add("--text", type=Path, metavar="FILE", help="a .txt, or a .jsonl with prompts (and references)")
    add("--ignore-chat-template", action="store_true")
    add("--limit", type=int, default=4, metavar="N", help="prompts of each set (default: %(default)s)")
    add("--max-tokens", type=int, default=128, metavar="N", help="default: %(default)s")
    add("--repeats", type=int, default=3, metavar="N", help="default: %(default)s")
    add("--temp", type=float, default=0.0, help="above 0 the arms that can sample do (default: %(default)s)")
    add("--top-p", type=float, default=0.0, help="with --temp; 0: off")
    add("--seed", type=int, default=0, help="with --temp")
    add("--provider", choices=("auto", "cuda", "cpu"), default="auto", help="of onnxruntime (default: %(default)s)")
    add(
        "--num-threads",
        type=int,
        metavar="N",
        help="CPU threads, not of MLX (default: each arm's own choice)",
    )
    add("--reference", metavar="ARM", help="the arm that all are held against (default: the first plain one)")
    add("--report", action="store_true", help="only the table of what OUT holds")
    add("--json", action="store_true", help="print OUT/summary.json instead of the tables")
    return parser.parse_args(words)


def arms_of(args: argparse.Namespace) -> list[Arm]:
    arms = [arm for folder, name in named(args.onnx).items() for arm in of_folder(folder, name)]
    if args.checkpoint is not None:
        arms += of_checkpoint(args.checkpoint, args.model, args.dtype)
    arms += of_peers(args.genai, args.gguf)
    if args.temp > 0:
        for arm in arms:
            if arm.greedy_only:
                print(f"benchmark: {arm.name}: left out, it decodes greedily here", file=sys.stderr)
        arms = [arm for arm in arms if not arm.greedy_only]
    if not arms:
        raise ValueError("nothing to time: expected --onnx, --checkpoint, --genai or --gguf")
    return choose(arms, args.arms)


def settings_of(args: argparse.Namespace, arms: list[Arm]) -> dict[str, Any]:
    """What must be the same where a benchmark goes on, and what it says of itself."""
    sampling = {"temp": args.temp, "top_p": args.top_p, "seed": args.seed} if args.temp > 0 else {}
    options: dict[str, Any] = {"sampling": sampling, "repeats": args.repeats}
    for name in IDENTITY:
        if name != "sampling":
            value = getattr(args, name)
            options[name] = [str(v) if isinstance(v, Path) else v for v in value] if isinstance(value, list) else value
    options["text"] = None if args.text is None else str(args.text)
    return {"options": options, "arms": {arm.name: vars(arm) for arm in arms}, "about": {}, **conditions()}


def check_same(file: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """The settings with the arms of before among them. ValueError in one line where the benchmark was another one."""
    if not file.is_file():
        return settings
    before = json.loads(file.read_text())
    for name in IDENTITY:
        old, new = before["options"].get(name), settings["options"][name]
        if old != new:
            raise ValueError(f"{file.parent}: made with {name} {old}, got {new}; name another folder, or remove this one")
    for name, arm in settings["arms"].items():
        if before["arms"].get(name, arm) != arm:
            raise ValueError(f"{file.parent}: {name} was another arm there; name another folder, or remove this one")
    return settings | {"arms": before["arms"] | settings["arms"], "about": before["about"]}


def tokenizer_of(args: argparse.Namespace) -> Tokenizer:
    """That of the first model with one: all are of the same base."""
    if args.onnx:
        return Tokenizer.from_folder(args.onnx[0])
    if args.checkpoint is not None:
        from mtpd_mlx.checkpoints.format import CONFIG_NAME, read_config
        from mtpd_mlx.hub.pull import resolve_folder

        folder, base = args.checkpoint, args.model
        if base is None and (folder / CONFIG_NAME).is_file():
            base = read_config(folder).base.locate(folder)
        return Tokenizer.from_folder(resolve_folder(base or folder))
    if args.genai:
        return Tokenizer.from_folder(args.genai[0])
    raise ValueError("no tokenizer: expected --onnx, --checkpoint or --genai beside --gguf")


def capacities(arms: list[Arm]) -> list[int]:
    """Of the exported folders among them, whose caches have a fixed size."""
    from mtpd_onnx.manifest import read_manifest

    return [read_manifest(Path(folder)).capacity for folder in {a.keywords["folder"] for a in arms if a.engine == "onnx"}]


def sets_of(args: argparse.Namespace, arms: list[Arm]) -> prompts.Sets:
    room = min(capacities(arms), default=1 << 20) - args.max_tokens - SPARE
    if args.lengths and args.text is None:
        raise ValueError("--lengths: expected --text with it")
    tokenizer = tokenizer_of(args)
    sets = prompts.of_files(args.prompts, tokenizer, room, args.limit, not args.ignore_chat_template)
    sets |= prompts.of_lengths(args.lengths, args.text, tokenizer, room, args.limit) if args.lengths else {}
    if not sets:
        raise ValueError("no prompts: expected --prompts or --lengths")
    return sets


def start(arm: Arm, common: Common) -> Child:
    words = [arm.engine, json.dumps(arm.keywords), json.dumps(vars(common))]
    command = [sys.executable, "-m", "tools.benchmark.child", *words]
    return Child(arm.name, command, os.environ | python_path())


def measure(args: argparse.Namespace) -> None:
    arms = arms_of(args)
    sets = sets_of(args, arms)
    args.out.mkdir(parents=True, exist_ok=True)
    settings = check_same(args.out / SETTINGS, settings_of(args, arms))
    needed = max(len(tokens) for each in sets.values() for tokens in each) + args.max_tokens + SPARE
    capacity = max([*capacities(arms), -(-needed // 256) * 256])
    common = Common(settings["options"]["sampling"], capacity, args.num_threads, args.provider)
    children = {arm.name: start(arm, common) for arm in arms}
    try:
        settings["about"] |= {name: child.ready for name, child in children.items()}
        write_json(args.out / SETTINGS, settings)
        runs.measure(args.out, sets, {n: c.ask for n, c in children.items()}, args.max_tokens, args.repeats, dot)
        print(file=sys.stderr)
    finally:
        for child in children.values():
            child.close()


def report(args: argparse.Namespace) -> None:
    file = args.out / SETTINGS
    if not file.is_file():
        raise ValueError(f"{args.out}: no benchmark in it (no {SETTINGS})")
    settings = json.loads(file.read_text())
    made = runs.read(args.out)
    there = {run["arm"] for run in made}
    arms = [Arm(**arm) for name, arm in settings["arms"].items() if name in there]
    if not arms:
        raise ValueError(f"{args.out}: no runs in it")
    found = summary(made, arms, args.reference)
    values = {"conditions": settings, **found}
    write_json(args.out / SUMMARY, values)
    print(json.dumps(values, indent=2) if args.json else describe(found, settings))


def main() -> int:
    args = parse()
    try:
        if not args.report:
            measure(args)
        report(args)
    except (ValueError, OSError, ImportError) as error:
        print(f"benchmark: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
