"""Training data from the model itself: the base's own continuations of prompts, many at a time, resumable.

Heads draft for the base, so what they meet when decoding is the base's own text; deep heads gain most from training on it.
Rows hold the exact token ids beside the text: decoding and encoding again need not give the same tokens.
"""

import json
import os
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtpd_mlx.data.formats import MADE_BY, OWN, OWN_CONFIG
from mtpd_mlx.files.atomic import leftovers, replacing, write_json, write_text
from mtpd_mlx.files.json_object import read_json_object
from mtpd_mlx.files.lock import check_unlocked, locked
from mtpd_mlx.inspection.counts import cache_bytes, state_bytes
from mtpd_mlx.model.base import Base, load_base, say_if_slow
from mtpd_mlx.model.compute import compute_in
from mtpd_mlx.model.finite import type_name
from mtpd_mlx.model.load_save import versions
from mtpd_mlx.model.runtime import memory_bytes, mx, on_cpu
from mtpd_mlx.model.slots import Draw, argmax, write_texts
from mtpd_mlx.options.distill import DistillConfig, check_together
from mtpd_mlx.options.resume import ON_RESUME, resumed
from mtpd_mlx.options.schema import as_dict, read_values
from mtpd_mlx.speculative.finite import naming
from mtpd_mlx.text.prompts import encode_prompt, prompt_of, prompt_rows
from mtpd_mlx.text.rows import encode_texts
from mtpd_mlx.text.tokenizer import Tokenizer

CONFIG_NAME, PART_NAME = OWN_CONFIG, "part.jsonl"
SPLITS = ("train.jsonl", "valid.jsonl")
NAMES = (*SPLITS, PART_NAME, CONFIG_NAME)
FEWEST, MOST, MEMORY_SHARE = 16, 1024, 0.25  # texts at a time
SYNC_EVERY = 5.0  # seconds of texts that a loss of power may cost
MOVED = ("batch_size",)  # may differ on --resume: texts do not depend on it


@dataclass(frozen=True)
class Work:
    """Everything that decides the output, loaded."""

    cfg: DistillConfig
    base: Base
    tokenizer: Tokenizer
    prompts: list[list[int]]


def load_work(cfg: DistillConfig) -> Work:
    check_together(cfg)
    assert cfg.model is not None and cfg.prompts is not None
    check_unlocked(Path(cfg.out))
    adapter = None if cfg.adapter_path is None else Path(cfg.adapter_path).expanduser()
    base = load_base(cfg.model, dequantize=cfg.dequantize, adapter=adapter)
    compute_in(base, cfg.dtype)
    assert base.path is not None
    longest = base.context_length - cfg.max_tokens
    if longest < 1:
        raise ValueError(f"--max-tokens: got {cfg.max_tokens}, expected at most {base.context_length - 1} (the base's context)")
    tokenizer = Tokenizer.from_folder(base.path)
    prompts = encode(Path(cfg.prompts).expanduser(), tokenizer, cfg, longest)
    say_if_slow(base)
    return Work(cfg, base, tokenizer, prompts)


def encode(file: Path, tokenizer: Tokenizer, cfg: DistillConfig, longest: int | None = None) -> list[list[int]]:
    """Prompts as token ids: beginnings of {"text"} rows; prompts and conversations as `mtpd generate` takes them. ValueError
    where one has more than `longest` tokens, or none."""
    limit = None if cfg.limit is None or cfg.limit < 0 else cfg.limit
    rows = prompt_rows(file)[:limit]
    if rows and "text" in rows[0].values and not {"prompt", "messages"} & rows[0].values.keys():
        if other := [row.place for row in rows if "text" not in row.values]:
            raise ValueError(f'{other[0]}: expected a row with "text", as the first one')
        encoded = [ids[: cfg.prompt_tokens] for ids in encode_texts(rows, "text", tokenizer)]
    else:
        encoded = [encode_prompt(prompt_of(row), tokenizer, chat=not cfg.ignore_chat_template) for row in rows]
    for row, ids in zip(rows, encoded, strict=True):
        if longest is not None and not 0 < len(ids) <= longest:
            room = f"1..{longest}: the base's context less --max-tokens {cfg.max_tokens}"
            raise ValueError(f"{row.place}: got {len(ids)} tokens, expected {room}")
    if not encoded:
        raise ValueError(f"{file}: no prompts in it")
    return encoded


def drawer(cfg: DistillConfig) -> Draw:
    """The options' choice of tokens: the first whose probability, with those of lower ids, exceeds the number. The distribution
    is that of mlx_lm, in its order (top-p, min-p, top-k, then the temperature)."""
    if cfg.temp == 0:
        return argmax
    from mlx_lm.sample_utils import apply_min_p, apply_top_k, apply_top_p

    def draw(logits: mx.array, numbers: mx.array) -> mx.array:
        logits = logits.astype(mx.float32)
        logits = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        if 0 < cfg.top_p < 1:
            logits = apply_top_p(logits, cfg.top_p)
        if cfg.min_p:
            logits = apply_min_p(logits, cfg.min_p)
        if cfg.top_k:
            logits = apply_top_k(logits, cfg.top_k)
        weights = mx.softmax(logits / cfg.temp, axis=-1)
        sums = mx.cumsum(weights, axis=-1)
        return mx.argmax((sums > numbers[:, None] * sums[:, -1:]) & (weights > 0), axis=-1)

    return draw


def distill(work: Work, show: Callable[[int, int], None]) -> dict[str, int]:
    """Writes the two files; `show(prompts done, tokens made)` as texts end. Returns the number of rows of each."""
    with locked(Path(work.cfg.out)):
        return _distill(work, show)


def _distill(work: Work, show: Callable[[int, int], None]) -> dict[str, int]:
    cfg, out = work.cfg, Path(work.cfg.out)
    done = claim(work)
    show(len(done), 0)
    part = out / PART_NAME
    synced = time.monotonic()
    with part.open("a", encoding="utf-8") as f:
        for rows in _texts(work, [i for i in range(len(work.prompts)) if i not in done]):
            f.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
            f.flush()
            if time.monotonic() > synced + SYNC_EVERY:
                os.fsync(f.fileno())
                synced = time.monotonic()
            show(len(rows), sum(len(row["tokens"]) - row["prompt_tokens"] for row in rows))
    finished = sorted(_finished(part, work.prompts), key=lambda row: row["row"])
    sides = sides_of(work.prompts, cfg.valid_share)
    counts = {name: _write_split(out / name, (r for r in finished if sides[r["row"]] == name)) for name in SPLITS}
    part.unlink()
    return counts


def _texts(work: Work, missing: list[int]) -> Iterator[list[dict[str, Any]]]:
    """The rows of the prompts `missing`, as their texts end."""
    cfg, tokenizer = work.cfg, work.tokenizer
    with naming([str(i + 1) for i in missing]):
        for ended in write_texts(
            work.base,
            [work.prompts[i] for i in missing],
            cfg.max_tokens,
            tokenizer.eos_token_ids,
            slots=cfg.batch_size or texts_at_a_time(work.base, max(map(len, work.prompts)) + cfg.max_tokens),
            draw=drawer(cfg),
            seed=cfg.seed,
            numbers=missing,
        ):
            yield [_row(missing[place], work.prompts[missing[place]], tokens, tokenizer) for place, tokens in ended]


def texts_at_a_time(base: Base, positions: int) -> int:
    """How many texts of so many positions: FEWEST on a CPU, which has no more to gain; on a GPU what fits into a share of its
    memory. A text takes its caches (thrice while others begin, which copies them) and a few rows of float32 logits."""
    if on_cpu():
        return FEWEST
    caches = cache_bytes(base.dims, positions, 0, base.dtype.size) + state_bytes(base.dims, base.dtype.size)
    fit = int(MEMORY_SHARE * (memory_bytes() or 0)) // (3 * caches + 4 * 4 * base.vocab_size)
    return min(MOST, max(FEWEST, fit))


def _row(number: int, prompt: list[int], tokens: list[int], tokenizer: Tokenizer) -> dict[str, Any]:
    return {
        "row": number,
        "prompt": tokenizer.decode(prompt, skip_special_tokens=False),
        "completion": tokenizer.decode(tokens),
        "tokens": prompt + tokens,
        "prompt_tokens": len(prompt),
    }


def sides_of(prompts: list[list[int]], valid_share: float) -> list[str]:
    """train.jsonl or valid.jsonl for each prompt, by its hash: its texts are on one side, in whatever runs they are written. Of
    few prompts none may be on the side of validation, without which nothing trains: then the nearest one is."""
    places = [place_of(prompt) for prompt in prompts]
    nearest = min(places) if valid_share > 0 and len(set(places)) > 1 else -1.0
    return [SPLITS[place < valid_share or place == nearest] for place in places]


def place_of(prompt: list[int]) -> float:
    """The hash of a prompt, from 0 to 1."""
    return zlib.crc32(repr(prompt).encode()) / 2**32


def claim(work: Work) -> set[int]:
    """Makes or reopens the output folder; the rows that are done. Refuses to mix two runs or to replace output unasked."""
    cfg, out = work.cfg, Path(work.cfg.out)
    options = {k: v for k, v in as_dict(cfg).items() if k not in ON_RESUME}
    settings = {"options": options, "base": work.base.fingerprint, "versions": versions(), "dtype": type_name(work.base.dtype)}
    existing = [n for n in NAMES if (out / n).exists()]
    if cfg.resume:
        if not (out / PART_NAME).exists():
            raise ValueError(f"--resume: {out} holds no interrupted run ({PART_NAME} missing)")
        if read_settings(out).get("base") != settings["base"]:
            raise ValueError(f"--resume: --model {cfg.model} is not the base that {out} was begun with, or has changed")
        rows = list(_finished(out / PART_NAME, work.prompts))  # without the half line of a killed run
        write_text(out / PART_NAME, "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows))
        tidy(out)
        return {r["row"] for r in rows}
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


def tidy(out: Path) -> None:
    """Removes what killed runs were writing."""
    for leftover in leftovers(out, *NAMES):
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


def _finished(part: Path, prompts: list[list[int]]) -> Iterator[dict[str, Any]]:
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
