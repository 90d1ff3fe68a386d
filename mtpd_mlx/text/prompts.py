"""`read_prompts`, `encode_prompts`: prompt files as rows and as token lists.
Called by generate, eval, bench, verify, parity, distill-data and the tools."""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mtpd_mlx.text.chat_template import Messages, Tools
from mtpd_mlx.text.rows import Row, at, is_readable, read_rows
from mtpd_mlx.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prompt:
    """What a user says, or the messages of a conversation, with the tools that may be called; `reference` is a known
    continuation; `place`: FILE:LINE, for messages."""

    id: str
    text: str = ""
    messages: Messages | None = None
    reference: str | None = None
    tools: Tools | None = None
    place: str | None = field(default=None, compare=False)

    @property
    def named(self) -> str:
        return f"prompt {self.id}" if self.place is None else f"{self.place}: prompt {self.id}"


def read_prompts(file: Path | str) -> list[Prompt]:
    """Rows of a .jsonl file with "prompt" or "messages" (and perhaps "id", "reference", "tools"), or the lines of a .txt file.

    Blank lines are skipped; the id is the line number where a row has none. A conversation that ends with the
    assistant's answer is a prompt up to there, and the answer its reference. Of a list of references, one a turn as published
    MT-Bench has them, the first is the prompt's. ValueError (FILE:LINE: ...) otherwise.
    """
    return [prompt_of(row) for row in prompt_rows(file)]


def prompt_rows(file: Path | str) -> list[Row]:
    """The rows themselves, at least one."""
    file = Path(file)
    if not is_readable(file):
        raise ValueError(f"prompts {file}: no such file")
    rows = read_rows(file, "prompt", paragraphs=False)
    if not rows:
        raise ValueError(f"{file}: no prompts in it")
    return rows


def prompt_of(row: Row) -> Prompt:
    """The prompt of a row. ValueError with FILE:LINE if it is neither a prompt nor a conversation."""
    place, values = row.place, row.values
    identity, reference = str(values.get("id", row.number)), values.get("reference")
    if isinstance(reference, list) and all(isinstance(each, str) for each in reference):
        reference = reference[0] if reference else None
    if reference is not None and not isinstance(reference, str):
        raise ValueError(
            f'{place}: "reference": got {type(reference).__name__}, expected a text, or a list of them (one a turn)'
        )
    text, messages, tools = values.get("prompt"), values.get("messages"), values.get("tools")
    if text:
        return Prompt(identity, text, None, reference, tools, place)
    if text is not None or messages is None:
        raise ValueError(f'{place}: expected an object with "prompt" (a non-empty text) or "messages" (a list)')
    if messages[-1]["role"] == "assistant":
        reference = messages[-1].get("content") if reference is None else reference
        messages = messages[:-1]
    if not messages:
        raise ValueError(f'{place}: "messages": got the assistant\'s alone, expected one to answer')
    return Prompt(identity, "", messages, reference, tools, place)


def encode_prompt(prompt: Prompt, tokenizer: Tokenizer, *, chat: bool = True, system_prompt: str | None = None) -> list[int]:
    """Token ids. What a user says goes through the chat template where there is one, as in mlx_lm.generate, unless `chat` is
    off; messages always do. ValueError says which prompt it is."""
    messages = prompt.messages
    with at(prompt.named):
        if messages is None and tokenizer.has_chat_template and chat:
            messages = [{"role": "user", "content": prompt.text}]
        if messages is None:
            if system_prompt is not None:
                raise ValueError("--system-prompt: this tokenizer has no chat template; leave the option out")
            return tokenizer.encode(prompt.text)
        if system_prompt is not None and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": system_prompt}, *messages]
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tools=prompt.tools)
        return tokenizer.encode(text, add_special_tokens=False)


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt's id in its file, and its token ids."""

    id: str
    tokens: list[int]


def encode_prompts(
    file: Path, tokenizer: Tokenizer, longest: int, limit: int | None = None, *, chat: bool = True
) -> list[EncodedPrompt]:
    """Encoded as encode_prompt does. Prompts beyond `longest` tokens keep their end (their last tokens are what a continuation
    depends on), and how many do is said; an empty file is a ValueError."""
    if limit is not None and limit < 1:
        raise ValueError(f"--limit: got {limit}, expected at least 1")
    if longest < 1:
        raise ValueError(
            f"no room for a prompt: the context leaves {longest} positions, expected at least 1; --max-tokens may be too large"
        )
    encoded, cut = [], 0
    for prompt in read_prompts(file)[:limit]:
        tokens = encode_prompt(prompt, tokenizer, chat=chat)
        if tokens:
            encoded.append(EncodedPrompt(prompt.id, tokens[-longest:]))
            cut += len(tokens) > longest
    if not encoded:
        raise ValueError(f"{file}: no prompts in it")
    if cut:
        logger.warning(
            "%s: %d of %d prompts cut to their last %d tokens, which fit the context", file, cut, len(encoded), longest
        )
    return encoded


def set_names(files: Sequence[Path]) -> list[str]:
    """A name for each prompt set: its file's stem, or the whole path where stems are alike. ValueError for a file twice."""
    stems, twice = Counter(f.stem for f in files), [f for f, n in Counter(files).items() if n > 1]
    if twice:
        raise ValueError(f"--prompts: got {twice[0]} twice, expected each file once")
    return [f.stem if stems[f.stem] == 1 else str(f) for f in files]
