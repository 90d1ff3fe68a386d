"""From the name of a model, checkpoint or exported folder to a local folder."""

from pathlib import Path

from mtpd_mlx.hub.messages import explain
from mtpd_mlx.hub.resume import fetch_large

# Nothing that is code or pickled is ever asked for.
PATTERNS = ("*.json", "*.safetensors", "tokenizer*", "*.jinja", "*.onnx", "weights.bin", "README.md", "LICENSE*", "*.txt")
NEVER = ("pytorch_model*.bin", "*.pt", "*.pth", "*.pkl", "*.py", "*.gguf", "*/*")


def is_hub_id(name: str) -> bool:
    """Whether `name` has the form owner/name or owner/name@revision."""
    return not name.startswith((".", "/", "~")) and name.count("/") == 1 and all(name.split("/"))


def split_revision(name: str, revision: str | None = None) -> tuple[str, str | None]:
    """owner/name@revision -> (owner/name, revision)."""
    plain, _, written = name.partition("@")
    if written and revision and written != revision:
        raise ValueError(f"{name}: names revision {written}, --revision names {revision}")
    return plain, revision or written or None


def pull(name: str, revision: str | None = None, out: Path | None = None) -> Path:
    """The snapshot of a hub id in the local cache, or in `out`; interrupted downloads go on. ValueError in one line."""
    from huggingface_hub import snapshot_download

    name, revision = split_revision(name, revision)
    never = list(NEVER)
    try:
        fetch_large(name, revision, out, PATTERNS)
        wanted = list(PATTERNS)
        return Path(snapshot_download(name, revision=revision, local_dir=out, allow_patterns=wanted, ignore_patterns=never))
    except Exception as error:  # the hub client raises many kinds, and those of the HTTP library under it
        raise ValueError(explain(error, name, revision)) from None


def resolve_folder(name: str, revision: str | None = None) -> Path:
    """A local folder as it is; a hub id pulled where needed."""
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if not is_hub_id(name):
        raise ValueError(f"{name}: no such folder, and not a hub id of the form owner/name")
    return pull(name, revision)


def resolve_model(model: str, revision: str | None = None) -> Path:
    """A local model folder, or the local snapshot of a hub id (downloaded when needed). ValueError in one line otherwise."""
    try:
        path = resolve_folder(model, revision)
    except ValueError as error:
        raise ValueError(f"model {error}") from None
    if not (path / "config.json").is_file():
        raise ValueError(f"model folder {model}: no config.json in it")
    if not any(path.glob("model*.safetensors")) and any(path.glob("*.bin")):
        raise ValueError(f"model folder {model}: its weights are pickled, which are never loaded; convert them to safetensors")
    return path
