"""`chosen`, `choose`: the files of a folder that hold a model's tensors (`choose` needs names alone).
Called by every reader of a model's weights, mostly through RawTensors.of_model.

What model.safetensors.index.json names is read;
without an index model.safetensors alone, as transformers does; without that one all model*.safetensors. Nothing is taken from
two places: a tensor that two of these files hold is a ValueError, and so is an index that names what is not there.
"""

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from mtpd_mlx.files.json_object import read_json_object

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
WEIGHTS = "model*.safetensors"
# Shipped heads may lie beside the weights: mlx_lm.load takes all of WEIGHTS, and refuses tensors that it has no place for.
BESIDE = "mtp*.safetensors"
SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.safetensors")
Table = dict[str, dict[str, Any]]  # tensor -> {"dtype", "shape", "data_offsets"}, as a file's header has it
MOST_NAMED = 4  # files or tensors that a message names


@dataclass(frozen=True)
class ModelFiles:
    """`weights`: names of the files to read; `beside`: those of BESIDE; `surplus`: files that look like weights and are not
    read; `named`: tensor -> file, where an index says so; `remarks`: what a user should know, one line each."""

    weights: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    surplus: tuple[str, ...] = ()
    named: Mapping[str, str] | None = None
    remarks: tuple[str, ...] = ()

    @property
    def all(self) -> tuple[str, ...]:
        """With what lies beside."""
        return tuple(sorted({*self.weights, *self.beside}))


def choose(names: Collection[str], read_index: Callable[[], dict[str, Any]], place: str) -> ModelFiles:
    """`names`: of all files of a folder; `read_index`: the object in INDEX, where there is one; `place`: the folder in
    messages. ValueError in one line."""
    held = sorted(name for name in names if fnmatch(name, WEIGHTS))
    beside = tuple(sorted(name for name in names if fnmatch(name, BESIDE)))
    stale = ""
    if INDEX in names:
        where = index_entries(read_index(), f"{place}/{INDEX}")
        wanted = sorted(set(where.values()))
        missing = [name for name in wanted if name not in names]
        if all(fnmatch(name, BESIDE) for name in missing) and len(missing) < len(wanted):
            return _indexed(held, beside, where, wanted, missing, place)
        if SINGLE not in names or len(missing) < len(wanted):
            raise ValueError(
                f"{place}/{INDEX}: names {_few(missing)}, which the folder does not hold; fetch the model again (mtpd pull)"
            )
        stale = f"{place}: {INDEX} names {_few(missing)}, which the folder does not hold: {SINGLE} is read, as without an index"
    if SINGLE in names:
        surplus = tuple(name for name in held if name != SINGLE)
        said = f"{place}: {SINGLE} alone is read; beside it lies {_few(surplus)}" if surplus else ""
        return ModelFiles((SINGLE,), beside, surplus, None, tuple(filter(None, (stale, said))))
    _check_shards(held, place)
    return ModelFiles(tuple(held), beside)


def _indexed(
    held: list[str], beside: tuple[str, ...], where: dict[str, str], wanted: list[str], missing: list[str], place: str
) -> ModelFiles:
    """`missing`: of heads, without which the model is whole."""
    surplus, remarks = tuple(name for name in (*held, *beside) if name not in wanted), []
    if surplus:
        also = f" (transformers would read {SINGLE} alone: remove what is out of date)" if SINGLE in surplus else ""
        remarks.append(f"{place}: {INDEX} does not name {_few(surplus)}: not read{also}")
    if missing:
        remarks.append(f"{place}: {INDEX} names {_few(missing)}, which the folder does not hold: no heads are read from there")
    read = tuple(name for name in wanted if name not in missing)
    return ModelFiles(read, tuple(name for name in beside if name in read), surplus, where, tuple(remarks))


def index_entries(index: Mapping[str, Any], file: str) -> dict[str, str]:
    """tensor -> name of its file. ValueError in one line where the index has no such map, or it leads out of the folder."""
    where = index.get("weight_map")
    if not isinstance(where, dict) or not where:
        raise ValueError(f"{file}: weight_map: got {str(where)[:40]!r}, expected a file name for each tensor")
    for tensor, name in where.items():
        if not isinstance(name, str) or Path(name).name != name or "\\" in name or not name.endswith(".safetensors"):
            raise ValueError(f"{file}: {tensor!r}: got {str(name)[:60]!r}, expected the name of a safetensors file beside it")
    return where


def _check_shards(held: Iterable[str], place: str) -> None:
    """Without an index the names of shards say how many there are."""
    sets: dict[tuple[str, int], set[int]] = {}
    for name in held:
        if shard := SHARD.fullmatch(name):
            sets.setdefault((shard[1], int(shard[3])), set()).add(int(shard[2]))
    if len(sets) > 1:
        kinds = " and ".join(f"{stem}-...-of-{count:05d}" for stem, count in sorted(sets))
        raise ValueError(
            f"{place}: got shards {kinds} and no {INDEX} that says which to read: remove those that are out of date"
        )
    for (stem, count), numbers in sets.items():
        if absent := sorted(set(range(1, count + 1)) - numbers):
            raise ValueError(f"{place}: {stem}-{absent[0]:05d}-of-{count:05d}.safetensors is missing")


def agree(files: ModelFiles, tables: Mapping[str, Table], place: str) -> tuple[str, ...]:
    """Remarks on the files and their tables. ValueError where two of these hold a tensor, or the index says otherwise than they
    do. `tables`: of each file that is read."""
    where: dict[str, str] = {}
    for name, table in tables.items():
        for tensor in table:
            if tensor in where:
                raise ValueError(f"{place}: {tensor!r} is in {where[tensor]} and in {name}: expected it in one file")
            where[tensor] = name
    if files.named is None:
        return files.remarks
    for tensor, name in files.named.items():
        if name in tables and where.get(tensor) != name:
            if tensor not in where:
                raise ValueError(f"{place}: missing key {tensor!r}: {INDEX} says that it is in {name}")
            raise ValueError(f"{place}/{INDEX}: says that {tensor!r} is in {name}, but it is in {where[tensor]}")
    if unnamed := [tensor for tensor in where if tensor not in files.named]:
        remark = f"{place}: {INDEX} does not name {_few(unnamed)}: read from the files that it names, as transformers does"
        return (*files.remarks, remark)
    return files.remarks


def chosen(folder: Path) -> ModelFiles:
    """`choose` for a folder on disk; of one that is not there nothing."""
    names = {path.name for path in folder.iterdir() if path.is_file()} if folder.is_dir() else set()
    return choose(names, lambda: read_json_object(folder / INDEX), str(folder))


def model_files(folder: Path) -> list[Path]:
    """The files with a model's weights, sorted by name; none where the folder has none."""
    return [folder / name for name in chosen(folder).weights]


def _few(names: Collection[str]) -> str:
    shown = ", ".join(sorted(names)[:MOST_NAMED])
    return shown if len(names) <= MOST_NAMED else f"{shown} and {len(names) - MOST_NAMED} more"
