"""`fill`: the weights of a skeleton, written again from a Hugging Face folder with numpy alone.
Called by genai_peer/__main__.py."""

import json
import os
import shutil
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from mtpd_mlx.files.safetensors import Raw, RawTensors
from tools.genai_peer import rotary
from tools.genai_peer.names import Source, source_of
from tools.genai_peer.skeleton import KEPT_NAME, LIST_NAME

DTYPES = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}
PIECE = 1 << 22  # elements that one thread copies at a time


def fill(skeleton: Path, model: Path, out: Path, threads: int | None = None) -> int:
    """Writes a whole genai folder to `out`; returns the bytes of its weights. ValueError in one line on what does not fit."""
    if not (skeleton / LIST_NAME).is_file():
        raise ValueError(f"{skeleton}: not a skeleton (no {LIST_NAME})")
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out}: exists already")
    values, weights = json.loads((skeleton / LIST_NAME).read_text()), RawTensors.of_model(model)
    jobs = plan(values["initializers"], weights)
    out.mkdir(parents=True, exist_ok=True)
    for file in sorted(skeleton.iterdir()):
        if file.name not in (LIST_NAME, KEPT_NAME):
            shutil.copyfile(file, out / file.name)
    target = out / values["data"]
    with target.open("wb") as f:
        f.truncate(values["bytes"])
    data = np.memmap(target, dtype=np.uint8, mode="r+")
    write_kept(data, values, np.load(skeleton / KEPT_NAME))
    tasks = [task for entry, source in jobs for task in copies(view(data, entry), source, weights)]
    with ThreadPoolExecutor(threads or os.cpu_count()) as pool:
        for result in [pool.submit(task) for task in tasks]:
            result.result()
    data.flush()
    return int(values["bytes"])


def plan(entries: list[dict[str, Any]], weights: RawTensors) -> list[tuple[dict[str, Any], Source]]:
    """The weights of every initializer that the skeleton did not keep. ValueError where one does not fit or is left over."""
    names, own = set(weights), {entry["name"] for entry in entries}
    if "model.embed_tokens.weight" not in own:  # one matrix for both ends: a second copy in the folder is not needed
        names.discard("lm_head.weight")
    jobs = [(entry, source) for entry in entries if (source := source_of(entry["name"], names)) is not None]
    for entry, source in jobs:
        check_shape(entry, source, weights)
    for name in sorted(names - {name for _, source in jobs for name in source.names}):
        if not name.endswith("inv_freq") and rows(weights, name).any():  # zero biases are left out
            raise ValueError(f"weights: the graph has no place for {name}")
    return jobs


def rows(weights: RawTensors, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
    """Rows start..stop-1; bfloat16 widened to float32, which is exact. ValueError for other types."""
    raw = weights.mapped(name, DTYPES)
    part = Raw(raw.dtype, raw.bits[start:stop])
    return part.floats() if raw.dtype == "BF16" else part.bits.view(DTYPES[raw.dtype])


def check_shape(entry: dict[str, Any], source: Source, weights: RawTensors) -> None:
    shapes = [weights.mapped(name, DTYPES).bits.shape for name in source.names]
    whole = (sum(shape[0] for shape in shapes), *shapes[0][1:])
    got, expected = whole[::-1] if source.transposed else whole, tuple(entry["shape"])
    if got != expected or any(shape[1:] != whole[1:] for shape in shapes):
        raise ValueError(f"{' + '.join(source.names)}: gives shape {got}, the graph's {entry['name']} has {expected}")


def view(data: np.ndarray, entry: dict[str, Any]) -> np.ndarray:
    """The writable array of one initializer inside the weights file."""
    dtype, shape = np.dtype(entry["dtype"]), tuple(entry["shape"])
    size = int(np.prod(shape)) * dtype.itemsize
    return data[entry["offset"] : entry["offset"] + size].view(dtype).reshape(shape)


def copies(target: np.ndarray, source: Source, weights: RawTensors) -> list[Callable[[], None]]:
    """Tasks that copy (and cast, and transpose) a slice of rows each."""
    rows_of = target.T if source.transposed else target
    tasks, first = [], 0
    for name in source.names:
        count, *rest = weights.shape(name)
        step = max(1, PIECE // max(1, int(np.prod(rest))))
        for start in range(0, count, step):
            stop = min(count, start + step)
            tasks.append(copy_task(rows_of[first + start : first + stop], weights, name, start, stop))
        first += count
    return tasks


def copy_task(target: np.ndarray, weights: RawTensors, name: str, start: int, stop: int) -> Callable[[], None]:
    def copy() -> None:
        with np.errstate(over="ignore"):  # beyond fp16's range: infinite, as the builder has it
            target[:] = rows(weights, name, start, stop).astype(target.dtype, copy=False)

    return copy


def write_kept(data: np.ndarray, values: dict[str, Any], kept: Any) -> None:
    """Rotary tables and constants. Says so where this machine's cos gives a table that differs from the builder's."""
    entries = {entry["name"]: entry for entry in values["initializers"]}
    for name in kept.files:
        target, table = view(data, entries[name]), kept[name]
        if name in rotary.FUNCTIONS:
            prediction = rotary.predict(name, target.shape, target.dtype, values["rope_theta"])
            table = rotary.restore(prediction, table)
            if rotary.digest(table) != values["rotary_sha256"][name]:
                print(
                    f"genai_peer: {name} differs from the builder's in some last bits (another numpy or CPU)", file=sys.stderr
                )
        target[:] = table
