"""The arms of a benchmark: every way to decode that the given folders and installed packages allow.
Called by benchmark/__main__.py, child.py, engines.py and peers.py.

A new way to decode is one line in `of_folder`, `of_checkpoint` or `of_peers`, and the keyword that it gives its engine.
__main__.py lists them, child.py opens them.
"""

import shutil
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Common:
    """What is the same for all arms. `sampling`: fields of Sampling, none where greedy; `capacity`: positions that a prompt and
    its text may take; `num_threads`: of CPUs, None for each arm's own choice; `provider`: of onnxruntime."""

    sampling: dict[str, Any]
    capacity: int
    num_threads: int | None
    provider: str


@dataclass(frozen=True)
class Arm:
    """`name`: "GROUP WAY", unique. `group`: arms over the same weights in the same engine, one of them plain decoding.
    `engine`: the function of engines.py (or peers.py) that opens it, with these keywords. `greedy_only`: it cannot sample."""

    name: str
    group: str
    engine: str
    keywords: dict[str, Any] = field(default_factory=dict)
    plain: bool = False
    greedy_only: bool = False


def of_folder(folder: Path, group: str) -> list[Arm]:
    """Of an exported folder: plain decoding, rounds of 1, 2, 4, ... drafts where it can verify any number of them, the heads'
    drafts as many as pay ("heads"), and a choice of these and of prompt lookup ("chosen"), all that one without heads has."""
    from mtpd_onnx.manifest import read_manifest

    manifest = read_manifest(folder)
    where = {"folder": str(folder)}
    arms = [Arm(f"{group} plain", group, "onnx", where | {"plain": True}, plain=True)]
    counts = numbers_of_drafts(manifest.num_heads) if manifest.any_drafts or not manifest.num_heads else [manifest.num_heads]
    arms += [Arm(f"{group} K={k}", group, "onnx", where | {"drafts": k}) for k in counts]
    if manifest.any_drafts:
        arms += [Arm(f"{group} heads", group, "onnx", where | {"lookup": False})] if manifest.num_heads else []
        arms.append(Arm(f"{group} chosen", group, "onnx", where))
    return arms


def of_checkpoint(checkpoint: Path, model: str | None, dtype: str, group: str = "mlx") -> list[Arm]:
    """Of heads (or a base alone) with MLX: stock mlx_lm, our plain decoding, 1, 2, 4, ... drafts, prompt lookup alone, the
    heads' drafts as many as pay ("heads"), and the default, which chooses of both ("chosen")."""
    from mtpd_mlx.checkpoints.format import CONFIG_NAME, read_config

    heads = read_config(checkpoint).num_heads if (checkpoint / CONFIG_NAME).is_file() else 0
    what = {"checkpoint": str(checkpoint), "model": model, "dtype": dtype}
    arms = [Arm(f"{group} stock", group, "mlx_stock", what), Arm(f"{group} plain", group, "mlx", what | {"drafts": 0}, True)]
    arms += [Arm(f"{group} K={k}", group, "mlx", what | {"drafts": k}) for k in numbers_of_drafts(heads)]
    arms += [Arm(f"{group} lookup", group, "mlx", what | {"heads": False})]
    arms += [Arm(f"{group} heads", group, "mlx", what | {"lookup": False})] if heads else []
    return arms + ([Arm(f"{group} chosen", group, "mlx", what)] if heads else [])


def of_peers(genai: list[Path], gguf: list[Path]) -> list[Arm]:
    """Other projects' decoders: onnxruntime-genai on its folders, llama.cpp on GGUF files. ValueError in one line where one is
    not installed."""
    arms = [Arm(name, name, "genai", {"folder": str(f)}, True, True) for f, name in named(genai, "genai").items()]
    for file, name in named(gguf, "llama.cpp").items():
        arms.append(Arm(name, name, llama_cpp_engine(), {"file": str(file)}, True, True))
    return arms


def llama_cpp_engine() -> str:
    if find_spec("llama_cpp") is not None:
        return "llama_cpp"
    if shutil.which("llama-server") is not None:
        return "llama_server"
    raise ValueError("--gguf: llama.cpp is not installed: pip install llama-cpp-python, or a llama-server on PATH")


def numbers_of_drafts(heads: int) -> list[int]:
    """1, 2, 4, ... and all of them."""
    return sorted({k for k in (1 << i for i in range(8)) if k <= heads} | ({heads} if heads else set()))


def named(paths: list[Path], alone: str | None = None) -> dict[Path, str]:
    """A short name for each: `alone` for a single one, with the folder's or file's own name where there are several."""
    if alone is not None and len(paths) == 1:
        return {paths[0]: alone}
    names = [" ".join(filter(None, (alone, path.stem if path.is_file() else path.resolve().name))) for path in paths]
    if len(set(names)) < len(names):
        raise ValueError(f"two arms would be called {max(names, key=names.count)!r}: rename one of the folders")
    return dict(zip(paths, names, strict=True))


def choose(arms: list[Arm], wanted: list[str] | None) -> list[Arm]:
    """Those whose name holds one of the words, and plain decoding of their groups, which they are held against. ValueError for
    a word that no arm has."""
    if wanted is None:
        return arms
    for word in wanted:
        if not any(word in arm.name for arm in arms):
            raise ValueError(f"--arms: got {word!r}, expected part of one of: {', '.join(arm.name for arm in arms)}")
    chosen = {arm.name for arm in arms if any(word in arm.name for word in wanted)}
    groups = {arm.group for arm in arms if arm.name in chosen}
    return [arm for arm in arms if arm.name in chosen or (arm.plain and arm.group in groups)]
