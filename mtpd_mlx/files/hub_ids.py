"""`is_hub_id`, `split_revision`: owner/name, with @revision if one is meant.
Called by the hub, checkpoints/format.py and options."""


def is_hub_id(name: str) -> bool:
    """Whether `name` has the form owner/name or owner/name@revision (a revision may hold a slash: refs/pr/1)."""
    plain = name.partition("@")[0]
    return not plain.startswith((".", "/", "~")) and plain.count("/") == 1 and all(plain.split("/"))


def split_revision(name: str, revision: str | None = None) -> tuple[str, str | None]:
    """owner/name@revision -> (owner/name, revision)."""
    plain, _, written = name.partition("@")
    if written and revision and written != revision:
        raise ValueError(f"{name}: got two revisions, {written} in the name and {revision} with --revision, expected one")
    return plain, revision or written or None
