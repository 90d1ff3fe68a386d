"""The folder of a distill-data run: its settings, finished rows, and the files that they become.
Called by data/own_text.py and `mtpd distill-data`.

A row is appended to the part file of its rank when its text has ended. A killed run leaves at most half a line at the end of
each; --resume goes on from the whole ones, with any number of ranks.
"""

import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mtpd_mlx.data.formats import MADE_BY, OWN, OWN_CONFIG
from mtpd_mlx.files.atomic import leftovers, replacing, write_json, write_text
from mtpd_mlx.files.json_object import read_json_object
from mtpd_mlx.options.distill import DistillConfig
from mtpd_mlx.options.resume import resumed
from mtpd_mlx.options.schema import read_values

CONFIG_NAME, PART_NAME = OWN_CONFIG, "part.jsonl"
SPLITS = ("train.jsonl", "valid.jsonl")
MOVED = ("batch_size",)  # may differ on --resume: texts do not depend on it


def sides_of(prompts: list[list[int]], valid_share: float) -> list[str]:
    """train.jsonl or valid.jsonl for each prompt, by its hash: its texts are on one side, in whatever runs they are written. Of
    few prompts none may be on the side of validation, without which nothing trains: then the nearest one is."""
    places = [place_of(prompt) for prompt in prompts]
    nearest = min(places) if valid_share > 0 and len(set(places)) > 1 else -1.0
    return [SPLITS[place < valid_share or place == nearest] for place in places]


def place_of(prompt: list[int]) -> float:
    """The hash of a prompt, from 0 to 1."""
    return zlib.crc32(repr(prompt).encode()) / 2**32


def part_name(rank: int) -> str:
    """The file that a rank adds its rows to."""
    return f"part-{rank}.jsonl" if rank else PART_NAME


def parts_in(out: Path) -> list[Path]:
    """The part files of all ranks of the run in `out`."""
    return [file for file in (out / PART_NAME, *sorted(out.glob("part-*.jsonl"))) if file.exists()]


def claim(cfg: DistillConfig, settings: dict[str, Any], prompts: list[list[int]]) -> set[int]:
    """Makes or reopens the output folder; the rows that are done. Refuses to mix two runs or to replace output unasked."""
    out = Path(cfg.out)
    parts = parts_in(out)
    if cfg.resume:
        if not (out / PART_NAME).exists():
            raise ValueError(f"--resume: {out} holds no interrupted run ({PART_NAME} missing)")
        if read_settings(out).get("base") != settings["base"]:
            raise ValueError(f"--resume: --model {cfg.model} is not the base that {out} was begun with, or has changed")
        rows = rows_by_number(parts, prompts)  # without the half lines of a killed run
        write_text(out / PART_NAME, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows.values()))
        for part in parts:
            if part.name != PART_NAME:
                part.unlink()
        tidy(out)
        return set(rows)
    existing = [n for n in (*SPLITS, *(part.name for part in parts), CONFIG_NAME) if (out / n).exists()]
    if existing and not cfg.overwrite:
        raise ValueError(f"--out {out}: holds {existing[0]} already; use --resume, --overwrite or another folder")
    assert cfg.prompts is not None
    if any((out / name).samefile(Path(cfg.prompts).expanduser()) for name in existing):
        raise ValueError(f"--out {out}: --overwrite would replace {cfg.prompts}, the --prompts themselves; use another folder")
    for name in existing:
        (out / name).unlink()
    tidy(out)
    write_json(out / CONFIG_NAME, settings)
    (out / PART_NAME).touch()
    return set()


def merge(cfg: DistillConfig, prompts: list[list[int]]) -> dict[str, int]:
    """Writes the two files of what the parts hold, in the order of the prompts, and removes them. Returns their rows."""
    out = Path(cfg.out)
    parts = parts_in(out)
    rows = rows_by_number(parts, prompts)
    if len(rows) < len(prompts):
        raise ValueError(f"{out}: the parts hold {len(rows)} of {len(prompts)} texts; go on with --resume")
    sides = sides_of(prompts, cfg.valid_share)
    counts = {name: _write_split(out / name, (rows[i] for i in sorted(rows) if sides[i] == name)) for name in SPLITS}
    for part in reversed(parts):  # the first one last: while it is there, the run counts as interrupted
        part.unlink()
    return counts


def rows_by_number(parts: list[Path], prompts: list[list[int]]) -> dict[int, dict[str, Any]]:
    return {row["row"]: row for part in parts for row in finished(part, prompts)}


def tidy(out: Path) -> None:
    """Removes what killed runs were writing."""
    for leftover in leftovers(out, *SPLITS, PART_NAME, CONFIG_NAME):
        leftover.unlink()


def read_settings(out: Path) -> dict[str, Any]:
    """What the run in `out` was begun with. ValueError in one line where that cannot be read."""
    saved = read_json_object(out / CONFIG_NAME, f"--resume: {out} holds no interrupted run: {CONFIG_NAME}")
    if not isinstance(saved.get("options"), dict):
        raise ValueError(f"--resume: {out} holds no interrupted run: {CONFIG_NAME}: no options in it")
    return saved


def resumed_config(file_values: dict[str, Any], flags: dict[str, Any]) -> DistillConfig:
    """The options an interrupted run was started with; given ones that say otherwise are refused."""
    given = read_values((DistillConfig,), file_values, flags)
    out = Path(given.get("out", DistillConfig.out))
    cfg: DistillConfig = resumed((DistillConfig,), read_settings(out)["options"], given, out=out, moved=MOVED)[0]
    return cfg


def finished(part: Path, prompts: list[list[int]]) -> Iterator[dict[str, Any]]:
    """The rows of the part file; the half line that a killed run may leave is left out. ValueError where a row is not one, or
    continues another prompt than is asked for now."""
    for number, line in enumerate(part.read_bytes().split(b"\n"), start=1):
        try:
            row = json.loads(line.decode())
        except UnicodeDecodeError as error:
            if error.reason != "unexpected end of data":  # a half line may end inside a character
                raise ValueError(f"{part}:{number}: damaged: not UTF-8 text (byte {error.start})") from error
            continue
        except (ValueError, RecursionError):
            continue
        if not _is_row(row, len(prompts)):
            raise ValueError(f"{part}:{number}: damaged: not a row of distill-data; remove the line to make the row again")
        if row["tokens"][: row["prompt_tokens"]] != prompts[row["row"]]:
            raise ValueError(f"{part}:{number}: continues another prompt than --prompts has as number {row['row'] + 1}")
        yield row


def _is_row(row: Any, count: int) -> bool:
    if not isinstance(row, dict) or not all(isinstance(row.get(name), str) for name in ("prompt", "completion")):
        return False
    number, tokens, prompt = row.get("row"), row.get("tokens"), row.get("prompt_tokens")
    if type(number) is not int or not 0 <= number < count or type(prompt) is not int:
        return False
    return isinstance(tokens, list) and all(type(t) is int and t >= 0 for t in tokens)


def _write_split(file: Path, rows: Iterator[dict[str, Any]]) -> int:
    count = 0
    with replacing(file) as temporary, temporary.open("w", encoding="utf-8") as f:
        for row in rows:
            values = {k: v for k, v in row.items() if k != "row"} | {MADE_BY: OWN}
            f.write(json.dumps(values, ensure_ascii=False) + "\n")
            count += 1
    return count
