"""`HubError`, `explain`: a fault of the hub in one line that says what to do. Tokens never appear in it.
Called by all of hub/."""

import os
import re

TOKEN = re.compile(r"(hf|api_org)_[A-Za-z0-9]{6,}|Bearer\s+\S+")
AGAIN = "run the same command again: it goes on where it stopped"


class HubError(ValueError):
    """`reason`: what is wrong with `name` on the hub."""

    def __init__(self, name: str, reason: str):
        super().__init__(f"{name}: {reason}")
        self.name, self.reason = name, reason


def need_package(name: str) -> None:
    """HubError about the repository `name` where the client, which only commands that use the hub need, is not installed."""
    try:
        import huggingface_hub  # noqa: F401
    except ImportError as error:
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise HubError(name, f"the hub needs its client ({why}): pip install huggingface_hub") from None


def without_tokens(text: str) -> str:
    """The text with every access token replaced by ***."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if secret := os.environ.get(name):
            text = text.replace(secret, "***")
    return TOKEN.sub("***", text)


def offline(error: BaseException) -> bool:
    """Whether it is the answer to HF_HUB_OFFLINE."""
    from huggingface_hub import errors

    return isinstance(error, errors.OfflineModeIsEnabled)


def unreachable(error: BaseException) -> bool:
    """Whether the hub was not reached at all: offline, no connection, or a server that fails."""
    lost = any(kind.__name__ == "TransportError" for kind in type(error).__mro__)  # of httpx, of httpx2
    return lost or isinstance(error, ConnectionError | TimeoutError) or (_status(error) or 0) >= 500


def _status(error: BaseException) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def reason(error: BaseException, revision: str | None = None, begun: bool = False) -> str:
    """One line for an error of huggingface_hub (or of the connection under it). `begun`: a download was under way."""
    from huggingface_hub import errors

    at = f" (revision {revision})" if revision else ""
    gone: tuple[type[BaseException], ...] = (errors.RevisionNotFoundError, *_kinds("RevisionResolutionError"))
    if isinstance(error, errors.GatedRepoError):
        return "gated on the hub: accept its terms on its page, log in with `hf auth login`, then run again"
    if isinstance(error, gone):
        return f"has no revision {revision or 'main'} on the hub"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "no such repository on the hub, or a private one (log in with `hf auth login`)"
    if isinstance(error, errors.RemoteEntryNotFoundError):
        return f"a file is missing on the hub{at}: {_line(error)}"
    if isinstance(error, errors.HFValidationError):
        return "not a hub id of the form owner/name"
    if offline(error):
        return "the hub cannot be reached (offline: HF_HUB_OFFLINE is set)"
    if (status := _status(error)) in (401, 403):
        return f"the hub refuses ({status}): log in with `hf auth login` to an account that may do this"
    if status is not None:
        return f"the hub answered {status}{at}: {_line(error)}; {AGAIN if begun else 'try again later'}"
    why = f"{type(error).__name__}: {_line(error)}"
    if unreachable(error) or isinstance(error, errors.LocalEntryNotFoundError):  # how a lost connection ends in the client
        return f"connection lost ({why}); {AGAIN}" if begun else f"the hub cannot be reached ({why})"
    if isinstance(error, OSError):
        return f"{_line(error)}{at}"
    if isinstance(error, ValueError):
        return f"the hub's answer cannot be read{at}: {_line(error)}"
    return f"connection lost ({why}); {AGAIN}"


def explain(error: BaseException, name: str, revision: str | None = None, begun: bool = False) -> HubError:
    """The error to raise in its place, about the repository `name`."""
    return HubError(name, reason(error, revision, begun))


def _kinds(name: str) -> tuple[type[BaseException], ...]:
    """An exception that not all versions of huggingface_hub have."""
    from huggingface_hub import errors

    found = getattr(errors, name, None)
    return () if found is None else (found,)


def _line(error: BaseException) -> str:
    lines = [line.strip() for line in without_tokens(str(error)).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
