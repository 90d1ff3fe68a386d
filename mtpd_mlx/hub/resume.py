"""`fetch_large`: large files of a repository, resumed across runs; huggingface_hub itself begins them again.
Called by hub/pull.py.

A file is fetched into a partial one that outlives the process, checked by its sha256, and put where the client looks for
finished files; processes that want the same one (the ranks of a run) wait for each other. Files that the client fetches through
Xet are left to it.
"""

import hashlib
import re
from fnmatch import fnmatch
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from mtpd_mlx.files.atomic import put_in_place

LARGE = 8 << 20  # bytes; smaller files are not worth resuming
SHA256 = re.compile(r"[0-9a-f]{64}")


def fetch_large(info: Any, name: str, out: Path | None, wanted: tuple[str, ...], never: tuple[str, ...]) -> None:
    """Fetches what is large, wanted (glob patterns, of which `never` goes first) and not there yet; raises what the hub client
    raises. `info`: the hub's answer about the repository."""
    for file in info.siblings or []:
        plain = "/" not in file.rfilename and any(fnmatch(file.rfilename, pattern) for pattern in wanted)
        if plain and (file.size or 0) >= LARGE and not any(fnmatch(file.rfilename, pattern) for pattern in never):
            _fetch(name, str(info.sha), file.rfilename, out)


def _fetch(name: str, revision: str, file: str, out: Path | None) -> None:
    """Uses what huggingface_hub does not document: file_download.http_get and repo_folder_name, utils.WeakFileLock, and the
    cache's blobs by etag. Broken by other names, another layout, or an http_get without resume_size."""
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.file_download import http_get, repo_folder_name
    from huggingface_hub.utils import WeakFileLock, build_hf_headers

    url = hf_hub_url(name, file, revision=revision)
    metadata = get_hf_file_metadata(url)
    through_xet = metadata.xet_file_data is not None and not constants.HF_HUB_DISABLE_XET
    if metadata.etag is None or not SHA256.fullmatch(metadata.etag) or through_xet:
        return
    repository = repo_folder_name(repo_id=name, repo_type="model")
    blobs = Path(constants.HF_HUB_CACHE) / repository / "blobs"
    target = blobs / metadata.etag if out is None else out / file
    folder = blobs if out is None else out / ".cache" / "mtpd"
    locks = Path(constants.HF_HUB_CACHE) / ".locks" / repository if out is None else folder
    for place in (folder, locks):
        place.mkdir(parents=True, exist_ok=True)
    headers = build_hf_headers()
    if urlparse(metadata.location).netloc != urlparse(url).netloc:
        headers.pop("authorization", None)
    partial = folder / f"{metadata.etag}.partial"
    with WeakFileLock(locks / f"{metadata.etag}.lock"):
        if target.exists() or (blobs / metadata.etag).exists():
            return
        with partial.open("ab") as f:
            if metadata.size is not None and f.tell() > metadata.size:
                f.truncate(0)
            size = f.seek(0, 2)
            http_get(
                metadata.location, f, resume_size=size, headers=headers, expected_size=metadata.size, displayed_filename=file
            )
        with partial.open("rb") as f:
            digest = hashlib.file_digest(f, "sha256").hexdigest()
        if digest != metadata.etag:
            partial.unlink()
            raise OSError(
                f"{file}: what was downloaded is damaged (sha256 differs) and was removed; run the same command again"
            )
        put_in_place(partial, target)
