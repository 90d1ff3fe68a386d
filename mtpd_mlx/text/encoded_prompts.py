"""Prompt files as token lists, the same for eval, parity and the demo."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mtpd_mlx.text.generate import read_prompts
from mtpd_mlx.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class EncodedPrompt:
    id: str
    tokens: list[int]


def encode_prompts(file: Path, tokenizer: Tokenizer, longest: int, limit: int | None = None) -> list[EncodedPrompt]:
    """Raw prompts are encoded as they are, message lists through the chat template. Prompts beyond `longest` tokens keep
    their end (their last tokens are what a continuation depends on); an empty file is a ValueError."""
    if limit is not None and limit < 1:
        raise ValueError(f"--limit: got {limit}, expected at least 1")
    if longest < 1:
        raise ValueError(
            f"no room for a prompt: the context leaves {longest} positions, expected at least 1; --max-tokens may be too large"
        )
    encoded = []
    for prompt in read_prompts(file)[:limit]:
        text = prompt.text
        try:
            if prompt.messages is not None:
                text = tokenizer.apply_chat_template(prompt.messages, add_generation_prompt=True, tools=prompt.tools)
            tokens = tokenizer.encode(text, add_special_tokens=prompt.messages is None)
        except ValueError as error:
            raise ValueError(f"{file}: prompt {prompt.id}: {error}") from error
        if tokens:
            encoded.append(EncodedPrompt(prompt.id, tokens[-longest:]))
    if not encoded:
        raise ValueError(f"{file}: no prompts in it")
    return encoded


def set_names(files: Sequence[Path]) -> list[str]:
    """A name for each prompt set: its file's stem, or the whole path where stems are alike. ValueError for a file twice."""
    stems, twice = Counter(f.stem for f in files), [f for f, n in Counter(files).items() if n > 1]
    if twice:
        raise ValueError(f"--prompts: got {twice[0]} twice, expected each file once")
    return [f.stem if stems[f.stem] == 1 else str(f) for f in files]
