"""`read_results`, `write_results`: results of the experiments, by name in memory, as rounded short rows on disk.
Called by run.py, findings.py, merge.py, real_heads.py and report.py.

run.py writes them, findings.py reads them, docs/results keeps them. On the disk, beside the conditions of the run:

    held_out         domain -> [tokens, bytes] of held-out text; "all" is every domain
    arms             key -> what the arm is, its training and its figures:
      train.curve      [iteration, main loss, tau, loss of each head]
      main             loss, entropy, accuracy: one figure a domain, in the order of held_out
      greedy, sampled
        all, sets        [[rounds, rounds whose drafts 1..k were all accepted, k = 1..K], the same of new 4-grams, distinct-4]
        domains          tau of each domain, in the order of held_out; null: no prompts
      forced           [positions, positions where heads 1..k all guess the main head's choice], along held-out text

CAR, AR, tau and bits per byte are derived from these when a file is read. Figures on held-out text keep six significant
digits, because changes of them are told in hundredths of a percent; all others keep four.
"""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mtpd_mlx.files.atomic import write_text
from mtpd_mlx.speculative.stats import acceptance_table

DIGITS, MAIN_DIGITS = 4, 6
MAIN_FIGURES = ("loss", "entropy", "accuracy")
KINDS = ("greedy", "sampled")
WIDTH = 130  # of a line that holds a whole object
Figures = dict[str, Any]


def write_results(file: Path, content: Figures) -> None:
    """`content`: the conditions, and `arms` with figures by name."""
    write_generated(file, "tools.experiments.run", packed(content))


def write_generated(file: Path, module: str, content: Figures) -> None:
    """JSON that says which module made it, replaced whole."""
    write_text(file, layout({"generated_by": f"python -m {module}"} | content) + "\n")


def read_results(file: Path) -> Figures:
    """What write_results was given, rounded. ValueError where it is a file of another kind."""
    content = json.loads(file.read_text())
    if not is_results(content):
        raise ValueError(f"{file}: got no 'held_out', expected a results file of tools.experiments.run")
    return unpacked(content)


def is_results(content: Any) -> bool:
    return isinstance(content, dict) and {"setting", "held_out", "arms"} <= content.keys()


def rounded(value: Any, digits: int = DIGITS) -> Any:
    """Every float inside `value` with so many significant digits."""
    if isinstance(value, float):
        return float(f"{value:.{digits}g}")
    if isinstance(value, dict):
        return {key: rounded(part, digits) for key, part in value.items()}
    return [rounded(part, digits) for part in value] if isinstance(value, list | tuple) else value


def layout(value: Any, indent: int = 0) -> str:
    """JSON with one line for a row of plain values and for whatever fits on one; the plain values of an object fill lines."""
    flat, pad = json.dumps(value, separators=(",", ": ")), " " * (indent + 1)
    if indent + len(flat) <= WIDTH or is_plain(value) or (isinstance(value, list) and all(map(is_plain, value))):
        return flat
    if isinstance(value, list):
        return "[\n" + ",\n".join(pad + layout(part, indent + 1) for part in value) + f"\n{' ' * indent}]"
    lines: list[str] = []
    filling = False  # the last line holds plain values and may take more
    for key, part in value.items():
        item = f"{json.dumps(str(key))}: {layout(part, indent + 1)}"
        if filling and is_plain(part) and len(lines[-1]) + len(item) < WIDTH:
            lines[-1] += f", {item}"
        else:
            lines.append(pad + item)
        filling = is_plain(part)
    return "{\n" + ",\n".join(lines) + f"\n{' ' * indent}}}"


def is_plain(value: Any) -> bool:
    return not isinstance(value, dict | list)


def packed(content: Figures) -> Figures:
    entries = content["arms"]
    held_out: dict[str, list[int]] = {}
    for entry in entries.values():
        sizes = {domain: [m["tokens"], m["bytes"]] for domain, m in entry["main"].items()}
        held_out = held_out or sizes
        assert sizes == held_out  # one file, one held-out text
    arms = {key: pack_arm(entry, list(held_out)) for key, entry in entries.items()}
    return content | {"held_out": held_out, "arms": arms}


def unpacked(stored: Figures) -> Figures:
    arms = {key: unpack_arm(entry, stored["held_out"]) for key, entry in stored["arms"].items()}
    return {key: value for key, value in stored.items() if key not in ("generated_by", "held_out")} | {"arms": arms}


def pack_arm(entry: Figures, domains: list[str]) -> Figures:
    known = [name for name in MAIN_FIGURES if name in entry["main"]["all"]]
    main = {name: [rounded(entry["main"][d][name], MAIN_DIGITS) for d in domains] for name in known}
    kinds = {kind: pack_kind(entry[kind], domains) for kind in KINDS if kind in entry}
    forced = {"forced": accepted(entry["forced"])} if "forced" in entry else {}
    return entry | {"train": pack_train(entry["train"]), "main": main} | kinds | forced


def unpack_arm(entry: Figures, held_out: dict[str, list[int]]) -> Figures:
    main = {}
    for place, (domain, (tokens, size)) in enumerate(held_out.items()):
        figures = {name: values[place] for name, values in entry["main"].items()}
        bits = figures["loss"] * tokens / math.log(2) / size
        main[domain] = figures | {"bits_per_byte": bits, "tokens": tokens, "bytes": size}
    kinds = {kind: unpack_kind(entry[kind], list(held_out)) for kind in KINDS if kind in entry}
    forced = {"forced": acceptance(entry["forced"])} if "forced" in entry else {}
    return entry | {"train": unpack_train(entry["train"]), "main": main} | kinds | forced


def pack_train(train: Figures) -> Figures:
    """Options are kept as they are."""
    figures = rounded({key: value for key, value in train.items() if key != "options"})
    if "curve" in train:
        figures["curve"] = [[r["iter"], r["main_loss"], r["tau"], *r["head_loss"]] for r in figures["curve"]]
    return train | figures


def unpack_train(train: Figures) -> Figures:
    names = ("iter", "main_loss", "tau")
    curve = [dict(zip(names, row, strict=False)) | {"head_loss": row[3:]} for row in train.get("curve", [])]
    return train | ({"curve": curve} if "curve" in train else {})


def pack_kind(kind: Figures, domains: list[str]) -> Figures:
    return groups(kind, pack_group) | {"domains": [rounded(kind["domains"].get(domain)) for domain in domains]}


def unpack_kind(kind: Figures, domains: list[str]) -> Figures:
    taus = {domain: tau for domain, tau in zip(domains, kind["domains"], strict=True) if tau is not None}
    return groups(kind, unpack_group) | {"domains": taus}


def groups(kind: Figures, change: Callable[[Any], Any]) -> Figures:
    return {"all": change(kind["all"]), "sets": {name: change(group) for name, group in kind["sets"].items()}}


def pack_group(group: Figures) -> list[Any]:
    return [accepted(group), accepted(group["novel"]), rounded(group["distinct4"])]


def unpack_group(row: list[Any]) -> Figures:
    every, novel, distinct4 = row
    return acceptance(every) | {"novel": acceptance(novel), "distinct4": distinct4}


def accepted(figures: Figures) -> list[int]:
    """[rounds, rounds whose drafts 1..k were all accepted]: exact, since CAR is their quotient."""
    return [figures["rounds"], *(round(share * figures["rounds"]) for share in figures["car"])]


def acceptance(counts: list[int]) -> Figures:
    """The figures of measure/evaluate.py from a row of `accepted`."""
    depth = len(counts) - 1
    table = acceptance_table(np.repeat(np.arange(depth + 1), -np.diff([*counts, 0])), depth)
    return {"car": table.car, "ar": table.ar, "tau": table.tau, "rounds": counts[0]}
