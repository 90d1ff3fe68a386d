"""`distill`: the base's own continuations of prompts as training data, many at a time, resumable.
Called by `mtpd distill-data`.

Heads draft for the base, so what they meet when decoding is the base's own text; deep heads gain most from training on it.
Rows hold the exact token ids beside the text: decoding and encoding again need not give the same tokens.
"""

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtpd_mlx.data.own_folder import claim, merge, part_name
from mtpd_mlx.inspection.counts import cache_bytes, state_bytes
from mtpd_mlx.model.base import Base, load_base, say_if_slow
from mtpd_mlx.model.compute import compute_in
from mtpd_mlx.model.finite import type_name
from mtpd_mlx.model.load_save import versions
from mtpd_mlx.model.runtime import memory_bytes, mx, on_cpu
from mtpd_mlx.model.slots import Draw, argmax, write_texts
from mtpd_mlx.options.distill import DistillConfig, check_together
from mtpd_mlx.options.resume import ON_RESUME
from mtpd_mlx.options.schema import as_dict
from mtpd_mlx.ranks.world import World
from mtpd_mlx.speculative.finite import naming
from mtpd_mlx.text.prompts import encode_prompt, prompt_of, prompt_rows
from mtpd_mlx.text.rows import encode_texts
from mtpd_mlx.text.tokenizer import Tokenizer

FEWEST, MOST, MEMORY_SHARE = 16, 1024, 0.25  # texts at a time
SYNC_EVERY = 5.0  # seconds of texts that a loss of power may cost


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


def distill(work: Work, world: World, show: Callable[[int, int], None]) -> dict[str, int]:
    """Writes the two files; `show(prompts done, tokens made)` as texts of this rank end. Returns the number of rows of each.
    A text depends on its prompt's number alone, so the files are the same for any number of ranks."""
    with world.locked(Path(work.cfg.out)):
        done = set(world.from_lead(lambda: sorted(claim(work.cfg, settings_of(work), work.prompts))))
        show(len(done), 0)
        _write_share(work, [i for i in range(len(work.prompts)) if i not in done][world.rank :: world.size], world.rank, show)
        world.wait()
        return world.from_lead(lambda: merge(work.cfg, work.prompts))


def settings_of(work: Work) -> dict[str, Any]:
    """What a run is begun with, as its folder records it."""
    options = {k: v for k, v in as_dict(work.cfg).items() if k not in ON_RESUME}
    return {"options": options, "base": work.base.fingerprint, "versions": versions(), "dtype": type_name(work.base.dtype)}


def _write_share(work: Work, missing: list[int], rank: int, show: Callable[[int, int], None]) -> None:
    """Appends the rows of the prompts `missing` to the part file of this rank."""
    synced = time.monotonic()
    with (Path(work.cfg.out) / part_name(rank)).open("a", encoding="utf-8") as f:
        for rows in _texts(work, missing):
            f.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
            f.flush()
            if time.monotonic() > synced + SYNC_EVERY:
                os.fsync(f.fileno())
                synced = time.monotonic()
            show(len(rows), sum(len(row["tokens"]) - row["prompt_tokens"] for row in rows))


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
