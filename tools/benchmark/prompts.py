"""`of_files`, `of_lengths`: the prompt sets of a benchmark as token ids, from files or cut out of a text.
Called by benchmark/__main__.py."""

from pathlib import Path

from mtpd_mlx.text.prompts import encode_prompts, read_prompts, set_names
from mtpd_mlx.text.tokenizer import Tokenizer

Sets = dict[str, list[list[int]]]


def of_files(files: list[Path], tokenizer: Tokenizer, room: int, limit: int, chat: bool) -> Sets:
    """A set a file, its first `limit` prompts; those of more than `room` tokens keep their end, as in `mtpd bench`."""
    return {
        name: [p.tokens for p in encode_prompts(file, tokenizer, room, limit, chat=chat)]
        for name, file in zip(set_names(files), files, strict=True)
    }


def of_lengths(lengths: list[int], text: Path, tokenizer: Tokenizer, room: int, limit: int) -> Sets:
    """A set a length: `limit` prompts of exactly so many tokens, pieces of `text` one after the other, from its start again
    where it is too short. ValueError where one does not fit."""
    tokens = tokenizer.encode(written(text))
    sets: Sets = {}
    for length in lengths:
        if not 1 <= length <= room:
            raise ValueError(f"--lengths: got {length}, expected 1..{room} (the smallest context less --max-tokens)")
        endless = tokens * (-(-length * limit // len(tokens)))
        sets[f"{length} tokens"] = [endless[i * length : (i + 1) * length] for i in range(limit)]
    return sets


def written(file: Path) -> str:
    """The words of a .txt file, or prompts and references of a .jsonl."""
    if file.suffix == ".txt":
        return file.read_text()
    rows = read_prompts(file)
    return "\n\n".join(part for row in rows for part in (row.text, row.reference) if part)
