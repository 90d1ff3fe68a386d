"""What went wrong on the hub, in one line that says what to do. Tokens never appear in it."""

import os
import re

TOKEN = re.compile(r"(hf|api_org)_[A-Za-z0-9]{6,}|Bearer\s+\S+")
AGAIN = "run the same command again: it goes on where it stopped"


def without_tokens(text: str) -> str:
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if secret := os.environ.get(name):
            text = text.replace(secret, "***")
    return TOKEN.sub("***", text)


def explain(error: BaseException, name: str, revision: str | None = None) -> str:
    """One line for an error of huggingface_hub (or of the connection under it) about the repository `name`."""
    from huggingface_hub import errors

    at = f" at revision {revision}" if revision else ""
    offline = (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError, errors.CachedRepoTreeNotFoundError)
    if isinstance(error, errors.GatedRepoError):
        return f"{name}: gated on the hub: accept its terms on its page, log in with `hf auth login`, then run again"
    if isinstance(error, errors.RevisionNotFoundError | errors.RevisionResolutionError):
        return f"{name}: has no revision {revision or 'main'} on the hub"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"{name}: no such repository on the hub, or a private one (log in with `hf auth login`)"
    if isinstance(error, errors.RemoteEntryNotFoundError):
        return f"{name}{at}: a file is missing on the hub: {_line(error)}"
    if isinstance(error, errors.HFValidationError):
        return f"{name}: not a hub id of the form owner/name"
    if isinstance(error, offline):
        return f"{name}{at}: not in the local cache, and the hub cannot be reached (offline?)"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return f"{name}: the hub refuses ({status}): log in with `hf auth login` to an account that may do this"
    if status is not None:
        return f"{name}{at}: the hub answered {status}: {_line(error)}; {AGAIN}"
    if isinstance(error, OSError) and not isinstance(error, ConnectionError | TimeoutError):
        return f"{name}{at}: {_line(error)}"
    if isinstance(error, ValueError):
        return f"{name}{at}: the hub's answer cannot be read: {_line(error)}"
    return f"{name}{at}: connection lost ({type(error).__name__}: {_line(error)}); {AGAIN}"


def _line(error: BaseException) -> str:
    lines = [line.strip() for line in without_tokens(str(error)).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
