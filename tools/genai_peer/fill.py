"""Writes the weights of a skeleton again from a Hugging Face folder, with numpy alone."""

import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from tools.genai_peer import rotary
from tools.genai_peer.names import Source, source_of
from tools.genai_peer.safetensors_folder import Folder
from tools.genai_peer.skeleton import KEPT_NAME, LIST_NAME

PIECE = 1 << 22  # elements that one thread copies at a time


def fill(skeleton: Path, model: Path, out: Path, threads: int | None = None) -> int:
    """Writes a whole genai folder to `out`; returns the bytes of its weights. ValueError in one line on what does not fit."""
    if not (skeleton / LIST_NAME).is_file():
        raise ValueError(f"{skeleton}: not a skeleton (no {LIST_NAME})")
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out}: exists already")
    values, weights = json.loads((skeleton / LIST_NAME).read_text()), Folder(model)
    jobs = [job for entry in values["initializers"] if (job := plan(entry, weights)) is not None]
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


def plan(entry: dict[str, Any], weights: Folder) -> tuple[dict[str, Any], Source] | None:
    """The weights of one initializer, checked against its shape; None for what the skeleton kept."""
    source = source_of(entry["name"], weights)
    if source is None:
        return None
    shapes = [weights.shape(name) for name in source.names]
    whole = (sum(shape[0] for shape in shapes), *shapes[0][1:])
    got, expected = whole[::-1] if source.transposed else whole, tuple(entry["shape"])
    if got != expected or any(shape[1:] != whole[1:] for shape in shapes):
        raise ValueError(f"{' + '.join(source.names)}: gives shape {got}, the graph's {entry['name']} has {expected}")
    return entry, source


def view(data: np.ndarray, entry: dict[str, Any]) -> np.ndarray:
    """The writable array of one initializer inside the weights file."""
    dtype, shape = np.dtype(entry["dtype"]), tuple(entry["shape"])
    size = int(np.prod(shape)) * dtype.itemsize
    return data[entry["offset"] : entry["offset"] + size].view(dtype).reshape(shape)


def copies(target: np.ndarray, source: Source, weights: Folder) -> list[Callable[[], None]]:
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


def copy_task(target: np.ndarray, weights: Folder, name: str, start: int, stop: int) -> Callable[[], None]:
    def copy() -> None:
        with np.errstate(over="ignore"):  # beyond fp16's range: infinite, as the builder has it
            target[:] = weights.rows(name, start, stop).astype(target.dtype, copy=False)

    return copy


def write_kept(data: np.ndarray, values: dict[str, Any], kept: Any) -> None:
    """Rotary tables and constants. ValueError where a table did not come out as the builder wrote it."""
    entries = {entry["name"]: entry for entry in values["initializers"]}
    for name in kept.files:
        target, table = view(data, entries[name]), kept[name]
        if name in rotary.FUNCTIONS:
            prediction = rotary.predict(name, target.shape, target.dtype, values["rope_theta"])
            table = rotary.restore(prediction, table)
            if rotary.digest(table) != values["rotary_sha256"][name]:
                raise ValueError(f"{name}: this machine's numpy gives another table than the builder's")
        target[:] = table
