"""`push`: heads or an exported folder uploaded with a generated model card.
Called by `mtpd push`."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from mtpd_mlx.checkpoints.format import CONFIG_NAME, WEIGHTS_NAME, read_config
from mtpd_mlx.files.hub_ids import is_hub_id, split_revision
from mtpd_mlx.files.json_object import read_json_object
from mtpd_mlx.hub.card import card
from mtpd_mlx.hub.messages import explain, need_package
from mtpd_mlx.inspection.describe import MANIFEST, describe
from mtpd_mlx.inspection.folder_view import LocalView

CARD = "README.md"
LOCAL = re.compile(r"[/\\~]|\.\.?[/\\]|[A-Za-z]:[/\\]")  # how paths begin
OF_FOLDERS = ("adapter", "adapter_path", "from_base")  # keys that hold folders, or hub ids


def prepare(folder: Path, repository: str, base: str | None, licence: str | None) -> dict[str, bytes | Path]:
    """name -> contents or file of what is uploaded: what the format says and a card, nothing else that lies in the folder.

    `base`: the hub id of the base, needed where the checkpoint names a local folder. ValueError in one line.
    """
    if not is_hub_id(repository) or "@" in repository:
        raise ValueError(f"{repository}: not a hub id of the form owner/name")
    found = describe(LocalView(folder))
    if found["kind"] not in ("heads", "onnx"):
        raise ValueError(f"{folder}: expected heads or an exported folder, got {found['kind']}")
    held = found["base"] or {}
    named = base or str(held.get("id"))
    if not is_hub_id(named) or Path(named).exists():
        raise ValueError(f"{folder}: its base is a local folder ({named}); name it on the hub with --base-id owner/name")
    named, revision = split_revision(named)
    if revision is None and named == held.get("id"):
        revision = held.get("revision")
    on_hub: dict[str, Any] = {"id": named, "revision": revision}
    files: dict[str, bytes | Path]
    if found["kind"] == "heads":
        config = read_config(folder)
        if config.base.adapter is not None:
            raise ValueError(
                f"{folder}: its base has a local adapter; fuse it (mlx_lm.fuse), push that base, "
                "and adapt the heads to it with mtpd refit"
            )
        config = replace(config, base=replace(config.base, **on_hub))
        files = {WEIGHTS_NAME: folder / WEIGHTS_NAME, CONFIG_NAME: _json(config.to_json())}
    else:
        files = _exported(folder, on_hub)
    files[CARD] = card(found | {"base": held | on_hub}, repository, licence).encode()
    return files


def _exported(folder: Path, on_hub: dict[str, Any]) -> dict[str, bytes | Path]:
    values = read_json_object(folder / MANIFEST)
    files: dict[str, bytes | Path] = {}
    for name in values["files"]:
        path = folder / name
        if Path(name).name != name or path.is_symlink() or not path.is_file():
            raise ValueError(f"{folder}/{MANIFEST}: files: {name!r} is not a plain file of the folder")
        files[name] = path
    return files | {MANIFEST: _json(values | {"base": values["base"] | on_hub})}


def _json(values: Any) -> bytes:
    return (json.dumps(without_paths(values), indent=2) + "\n").encode()


def without_paths(values: Any) -> Any:
    """A record without the entries that name folders of this machine."""
    if isinstance(values, dict):
        return {k: without_paths(v) for k, v in values.items() if not (isinstance(v, str) and _is_local(v, k in OF_FOLDERS))}
    if isinstance(values, list):
        return [without_paths(v) for v in values if not (isinstance(v, str) and _is_local(v))]
    return values


def _is_local(text: str, of_folders: bool = False) -> bool:
    return LOCAL.match(text) is not None or (of_folders and (not is_hub_id(text) or Path(text).exists()))


def push(files: dict[str, bytes | Path], repository: str, private: bool, overwrite: bool) -> str:
    """Uploads in one commit; the address of the repository. ValueError where it holds files already, unless `overwrite`."""
    need_package(repository)
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi()
    try:
        address = str(api.create_repo(repository, private=private, exist_ok=True))
        held = set(api.list_repo_files(repository)) - {".gitattributes"}
        if held and not overwrite:
            raise Held(f"{repository}: holds {len(held)} files already; use --overwrite or another name")
        operations = [CommitOperationAdd(name, str(f) if isinstance(f, Path) else f) for name, f in files.items()]
        api.create_commit(repository, operations, commit_message="Upload with mtpd push")
    except Held as error:
        raise ValueError(str(error)) from None
    except Exception as error:  # the hub client raises many kinds, and those of the HTTP library under it
        raise explain(error, repository) from None
    return address


class Held(Exception):
    """The repository is not empty."""
