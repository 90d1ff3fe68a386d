"""Options of commands on folders and hub ids: import-heads, import-gguf, inspect, info, pull, push.
Called by these commands."""

from dataclasses import dataclass
from pathlib import Path

from mtpd_mlx.files.hub_ids import is_hub_id
from mtpd_mlx.files.lock import is_empty
from mtpd_mlx.options.export import DEFAULT_CAPACITY
from mtpd_mlx.options.measure import JsonOptions
from mtpd_mlx.options.schema import POSITIVE, REQUIRED, argument, option, same, switch
from mtpd_mlx.options.train import DataConfig, HeadsConfig, ModelConfig, RunConfig


@dataclass(frozen=True, kw_only=True)
class RevisionOptions:
    revision: str | None = option(None, "branch, tag or commit of a hub id", metavar="NAME", unset="main")


@dataclass(frozen=True, kw_only=True)
class ImportHeadsOptions(RevisionOptions):
    model: str = argument("model that ships MTP heads, or a folder of heads alone: a folder or a hub id", path=True)
    base: str | None = option(
        None, "of heads alone: the model they belong to", metavar="MODEL", path=True, unset="the one that their folder names"
    )
    out: Path = same(RunConfig, "out", default=REQUIRED)
    overwrite: bool = same(RunConfig, "overwrite")


@dataclass(frozen=True, kw_only=True)
class ImportGgufOptions:
    file: Path = argument("GGUF file of a llama, qwen2, qwen3 or gemma3 model")
    out: Path = same(RunConfig, "out", default=REQUIRED)
    dequantize: bool = same(ModelConfig, "dequantize")
    overwrite: bool = same(RunConfig, "overwrite")


@dataclass(frozen=True, kw_only=True)
class InspectOptions(RevisionOptions, JsonOptions):
    GROUP = "view"

    name: str = argument("a model, heads checkpoint, exported folder, cache or adapter; or a hub id", path=True)


@dataclass(frozen=True)
class MemoryPlan:
    """What memory is planned for: training num_heads heads on batch_size rows of max_seq_length tokens, and decoding up to
    `context` positions."""

    GROUP = "memory to plan for"

    num_heads: int = same(HeadsConfig, "num_heads", takes=POSITIVE)
    batch_size: int = same(DataConfig, "batch_size")
    max_seq_length: int = same(DataConfig, "max_seq_length", default=2048, takes=POSITIVE)
    context: int = option(DEFAULT_CAPACITY, "positions to decode", takes=POSITIVE)


@dataclass(frozen=True, kw_only=True)
class PullOptions(RevisionOptions):
    name: str = argument("hub id, owner/name or owner/name@revision")
    out: Path | None = same(RunConfig, "out", default=None, unset="the hub's local cache")

    def __post_init__(self) -> None:
        if not is_hub_id(self.name):
            raise ValueError(f"{self.name}: not a hub id of the form owner/name")
        out = self.out
        if out is not None and out.exists() and not is_empty(out) and not (out / ".cache").is_dir():
            raise ValueError(f"--out {out}: is not empty, and not an interrupted pull; use another folder")


@dataclass(frozen=True, kw_only=True)
class PushOptions:
    folder: Path = argument("heads checkpoint or exported folder")
    repository: str = argument("hub id to upload to, owner/name; log in first with `hf auth login`")
    base_id: str | None = option(None, "the base's hub id, where the checkpoint names a local folder", metavar="ID")
    license: str | None = option(None, "licence of the heads, for the card (for example apache-2.0)", metavar="NAME")
    private: bool = switch("make a private repository")
    overwrite: bool = switch("write into a repository that holds files already")
    dry_run: bool = switch("print the card and the files; upload nothing")
