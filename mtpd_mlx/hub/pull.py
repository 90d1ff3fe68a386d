"""`pull`, `resolve_model`: a local folder from the name of a model, checkpoint or exported folder.
Called by every command that takes a hub id."""

import logging
import shlex
from contextlib import nullcontext, suppress
from fnmatch import fnmatch
from functools import cache
from glob import escape
from pathlib import Path
from typing import Any

from mtpd_mlx.files.atomic import leftovers
from mtpd_mlx.files.hub_ids import is_hub_id, split_revision
from mtpd_mlx.files.lock import locked
from mtpd_mlx.files.model_files import chosen
from mtpd_mlx.hub.messages import HubError, explain, need_package, offline, reason, unreachable
from mtpd_mlx.hub.resume import fetch_large

# Nothing that is code or pickled is ever asked for.
PATTERNS = ("*.json", "*.safetensors", "tokenizer*.model", "*.jinja", "*.onnx", "weights.bin", "README.md", "LICENSE*", "*.txt")
NEVER = ("pytorch_model*.bin", "*.pt", "*.pth", "*.pkl", "*.pickle", "*.py", "*.gguf")
TEMPLATES = "additional_chat_templates/*.jinja"  # all that is asked for of subfolders
logger = logging.getLogger(__name__)


@cache  # one look at the hub, and one line about it, per run
def pull(name: str, revision: str | None = None, out: Path | None = None) -> Path:
    """The snapshot of a hub id in the local cache, or in `out`; interrupted downloads go on. Where the hub cannot be reached,
    what the cache holds. HubError (a ValueError) in one line."""
    need_package(name)
    from huggingface_hub import HfApi

    name, revision = split_revision(name, revision)
    try:
        info = HfApi().model_info(name, revision=revision, files_metadata=True)
    except Exception as error:  # the hub client raises many kinds, and those of the HTTP library under it
        if out is not None or not unreachable(error):
            raise explain(error, name, revision) from None
        return cached(name, revision, error)
    with nullcontext() if out is None else locked(out):
        return _download(info, name, revision, out)


def _download(info: Any, name: str, revision: str | None, out: Path | None) -> Path:
    from huggingface_hub import snapshot_download

    try:
        fetch_large(info, name, out, PATTERNS, NEVER)
        wanted, never = list(PATTERNS), [*NEVER, *below(info)]
        return Path(snapshot_download(name, revision=revision, local_dir=out, allow_patterns=wanted, ignore_patterns=never))
    except Exception as error:
        raise explain(error, name, revision, begun=True) from None


def below(info: Any) -> list[str]:
    """Patterns of the files in subfolders of a repository, chat templates aside. `info`: the hub's answer about it."""
    names = [file.rfilename for file in info.siblings or []]
    return [escape(name) for name in names if "/" in name and not fnmatch(name, TEMPLATES)]


def cached(name: str, revision: str | None, error: Exception) -> Path:
    """The snapshot in the local cache, in place of a hub that answers with `error`; says so in one line, unless being offline
    was asked for. HubError where there is none, or some of it is missing."""
    from huggingface_hub import errors, snapshot_download

    wanted, never, folder = list(PATTERNS), [*NEVER, "*/*"], None  # of subfolders nothing needs to be there
    with suppress(errors.LocalEntryNotFoundError, errors.HFValidationError):
        folder = Path(
            snapshot_download(name, revision=revision, allow_patterns=wanted, ignore_patterns=never, local_files_only=True)
        )
    if folder is None or not _is_whole(folder):
        at = f" at revision {revision}" if revision else ""
        held = "not" if folder is None else "not whole"
        raise HubError(name, f"{held} in the local cache{at}, and {reason(error, revision)}")
    if not offline(error):
        why = type(error).__name__
        logger.warning("%s: the hub cannot be reached (%s): using what the local cache holds", name, why)
    return folder


def _is_whole(folder: Path) -> bool:
    """Whether weights are there, all that an index or the names of shards speak of. (Other programs fetch some files of a
    repository, `mtpd inspect` the small ones.)"""
    try:
        chosen(folder)
    except (OSError, ValueError):
        return False
    return any(folder.glob("*.safetensors")) or _is_exported(folder)


def _is_exported(folder: Path) -> bool:
    return (folder / "weights.bin").exists() and any(folder.glob("*.onnx"))


def local_folder(name: str, revision: str | None = None) -> Path | None:
    """A local folder as it is, None for a hub id; ValueError in one line for what is neither, and for a folder's revision."""
    path = Path(name).expanduser()
    if path.is_dir():
        if revision is not None:
            raise ValueError(f"--revision {revision}: expected a hub id with it, got the folder {name}")
        return path
    if path.suffix.lower() == ".gguf" and path.is_file():
        raise ValueError(f"{name}: is a GGUF file; make a model folder of it: mtpd import-gguf {shlex.quote(name)} --out DIR")
    if path.exists():
        raise ValueError(f"{name}: is a file, expected a folder or a hub id")
    if path.parent.is_dir() and (left := [p.name for p in leftovers(path.parent, path.name) if p.suffix == ".old"]):
        raise ValueError(
            f"{name}: no such folder: an interrupted run was replacing it; rename {left[-1]} to get the old contents back"
        )
    if not is_hub_id(name):
        raise ValueError(f"{name}: no such folder, and not a hub id of the form owner/name")
    return None


def no_such_folder(error: HubError) -> HubError:
    """The same error of a name that could have been a folder's."""
    return HubError(error.name, f"no such folder; as a hub id: {error.reason}")


def resolve_folder(name: str | Path, revision: str | None = None) -> Path:
    """A local folder as it is; a hub id pulled where needed."""
    if (path := local_folder(str(name), revision)) is not None:
        return path
    try:
        return pull(str(name), revision)
    except HubError as error:
        raise no_such_folder(error) from None


def resolve_model(model: str, revision: str | None = None) -> Path:
    """A local model folder, or the local snapshot of a hub id (downloaded when needed). ValueError in one line otherwise."""
    try:
        path = resolve_folder(model, revision)
    except ValueError as error:
        raise ValueError(f"model {error}") from None
    if not (path / "config.json").is_file():
        other = ", but heads: the model is the base they belong to" if (path / "mtp_config.json").is_file() else ""
        raise ValueError(f"model folder {model}: no config.json in it{other}")
    if _is_exported(path):
        raise ValueError(f"model folder {model}: is an exported folder, which mtpd-onnx decodes; expected a model")
    if not any(path.glob("*.safetensors")) and any(path.glob("*.bin")):
        raise ValueError(f"model folder {model}: its weights are pickled, which are never loaded; convert them to safetensors")
    return path
