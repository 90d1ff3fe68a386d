"""`heads_of`: a random base whose text changes, and heads of a kind of which 0..4 drafts are accepted a round."""

from pathlib import Path

from tiny import VOCAB, write_base, write_checkpoint

from mtpd_mlx.model.load_save import load_for_decoding


def heads_of(kind: str, folder: Path, count: int) -> tuple:
    """(base, heads). kind: "postnorm", "prenorm", or "drafts", which draft among every second token."""
    base = write_base(folder / "base", scale=8.0)
    drafts = list(range(0, VOCAB, 2)) if kind == "drafts" else None
    source = "prenorm" if kind == "prenorm" else "postnorm"
    return load_for_decoding(write_checkpoint(folder / "heads", base, count, source, draft_tokens=drafts))[:2]
