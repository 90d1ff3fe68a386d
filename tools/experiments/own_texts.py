"""Heads of one base, measured along texts that the base wrote once: tau, CAR and AR by prompt set, greedy and sampled.

Used by fine_tune.py, and as a command, for any number of heads:

    python -m tools.experiments.own_texts MODEL OUT --prompts a.jsonl b.jsonl --heads NAME=FOLDER [NAME=FOLDER ...]

OUT/texts.json holds the texts, OUT/NAME.json the figures of one checkpoint, in the form that real_heads.py reads; what is there
is not measured again. T > 0 is rejection sampling (sampled_acceptance.py); not measured for heads with a draft vocabulary.
"""

import argparse
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mtpd_mlx.files.atomic import write_json
from mtpd_mlx.measure.acceptance import ForcedBatch, match_tables, teacher_force
from mtpd_mlx.measure.evaluate import repetition, summarise
from mtpd_mlx.model.base import Base, load_base
from mtpd_mlx.model.compute import compute_in
from mtpd_mlx.model.generate import Generation, Pick, batches_of, generate_batch, greedy
from mtpd_mlx.model.load_save import load_heads
from mtpd_mlx.model.runtime import mx
from mtpd_mlx.text.prompts import encode_prompts, set_names
from mtpd_mlx.text.tokenizer import Tokenizer
from tools.experiments.sampled_acceptance import sampled_tables

TEMP = 0.7
ROWS = 10  # texts of one pass
Figures = dict[str, Any]


@dataclass
class Texts:
    """`sets`: the set of each text; `own`: by kind (greedy, sampled), the texts, in the order of `sets`."""

    sets: list[str]
    own: dict[str, list[Generation]]
    temp: float = TEMP
    forced: dict[str, list[ForcedBatch]] = field(default_factory=dict)

    def save(self, file: Path) -> None:
        greedy = self.own["greedy"]
        made = {kind: [t.tokens for t in texts] for kind, texts in self.own.items()}
        write_json(file, {"sets": self.sets, "temp": self.temp, "prompts": [t.prompt for t in greedy]} | made)

    @classmethod
    def load(cls, file: Path) -> "Texts":
        content = json.loads(file.read_text())
        own = {
            kind: [Generation(p, t) for p, t in zip(content["prompts"], content[kind], strict=True)]
            for kind in ("greedy", "sampled")
            if kind in content
        }
        return cls(content["sets"], own, content["temp"])


def write_texts(base: Base, files: list[Path], max_tokens: int, limit: int | None, temp: float = TEMP) -> Texts:
    """The base's answers to the prompts of `files`, greedily and (temp > 0) at a temperature."""
    assert base.path is not None
    tokenizer = Tokenizer.from_folder(base.path)
    sets: list[str] = []
    prompts: list[list[int]] = []
    for name, file in zip(set_names(files), files, strict=True):
        found = encode_prompts(file, tokenizer, base.context_length - max_tokens, limit)
        sets += [Path(name).stem] * len(found)
        prompts += [p.tokens for p in found]
    own = {}
    for kind, heat in (("greedy", 0.0), *([("sampled", temp)] if temp > 0 else [])):
        made: list[list[int]] = [[]] * len(prompts)
        for number, chunk in enumerate(batches_of(prompts, 64)):
            mx.random.seed(number)
            texts = generate_batch(base, [prompts[i] for i in chunk], max_tokens, tokenizer.eos_token_ids, picking(heat))
            for i, tokens in zip(chunk, texts, strict=True):
                made[i] = tokens
        own[kind] = [Generation(p, t) for p, t in zip(prompts, made, strict=True)]
    return Texts(sets, own, temp)


def picking(temp: float) -> Pick:
    """Greedy at 0, else sampled, by MLX's global seed."""
    return greedy if temp == 0 else lambda logits: mx.random.categorical(logits.astype(mx.float32) / temp)


def measure_heads(base: Base, folder: Path, texts: Texts) -> Figures:
    """{num_heads, greedy: {all, sets: {name: figures}}, sampled: the same}; the base's part is done once, kept in `texts`."""
    heads, config = load_heads(folder, base)
    heads.set_dtype(base.dtype)
    found: Figures = {"num_heads": heads.num_heads, "validation": config.record.get("eval", {}).get("validation")}
    for kind, own in texts.own.items():
        if kind == "sampled" and heads.draft_tokens is not None:
            continue
        if kind not in texts.forced:
            texts.forced[kind] = teacher_force(base, own, ROWS)
        forced = texts.forced[kind]
        tables = (
            match_tables(base, heads, own, forced)
            if kind == "greedy"
            else sampled_tables(base, heads, own, texts.temp, 0, forced)
        )
        of_set = {}
        for name in ("", *dict.fromkeys(texts.sets)):
            which = [i for i, s in enumerate(texts.sets) if not name or s == name]
            some = [own[i] for i in which]
            of_set[name] = summarise(some, [tables[i] for i in which], heads.num_heads) | {
                "distinct4": repetition(some),
                "prompts": len(some),
                "tokens": sum(len(t.tokens) for t in some),
            }
        found[kind] = {"all": of_set.pop(""), "sets": of_set}
    return found


def open_base(model: str, adapter: Path | None = None) -> Base:
    base = load_base(model, adapter=adapter)
    compute_in(base)
    return base


def mean_tau(figures: Figures, kind: str = "greedy") -> float:
    """Over the prompt sets."""
    taus = [f["tau"] for f in figures[kind]["sets"].values()]
    return float(sum(taus) / len(taus))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("out", type=Path)
    parser.add_argument(
        "--prompts", type=Path, nargs="+", default=[], help="files of prompts; needed where OUT has no texts.json"
    )
    parser.add_argument("--heads", nargs="+", required=True, metavar="NAME=FOLDER")
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--limit", type=int, default=40, help="prompts of each set (default: %(default)s)")
    args = parser.parse_args()
    try:
        named = dict(part.split("=", 1) for part in args.heads if "=" in part)
        if len(named) != len(args.heads):
            raise ValueError(f"--heads: got {' '.join(args.heads)}, expected NAME=FOLDER, each name once")
        base, file = open_base(args.model), args.out / "texts.json"
        args.out.mkdir(parents=True, exist_ok=True)
        if not file.is_file():
            if not args.prompts:
                raise ValueError(f"--prompts: expected files of prompts, since {file} is not there")
            write_texts(base, args.prompts, args.max_tokens, args.limit).save(file)
        texts = Texts.load(file)
        for name, folder in named.items():
            to = args.out / f"{name}.json"
            if not to.is_file():
                write_json(to, measure_heads(base, Path(folder), texts))
            figures = json.loads(to.read_text())
            print(f"{name}: tau {mean_tau(figures):.3f} greedy", flush=True)
    except (ValueError, OSError) as error:
        print(f"own_texts: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
