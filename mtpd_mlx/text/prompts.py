"""Prompt files, as rows and as token lists: what generate, eval, bench, verify and parity read."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtpd_mlx.files.json_object import parse_json_object
from mtpd_mlx.text.chat_template import Messages, Tools, check_tools
from mtpd_mlx.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Prompt:
    """A raw text, or the messages of a conversation for the chat template, with the tools it may call; `reference` is a known
    continuation."""

    id: str
    text: str = ""
    messages: Messages | None = None
    reference: str | None = None
    tools: Tools | None = None


def read_prompts(file: Path | str) -> list[Prompt]:
    """Rows of a .jsonl file with "prompt" or "messages" (and perhaps "id", "reference", "tools"), or the lines of a .txt file.

    Blank lines are skipped; the id is the line number where a row has none. A conversation that ends with the
    assistant's answer is a prompt up to there, and the answer its reference. ValueError (FILE:LINE: ...) otherwise.
    """
    file = Path(file)
    if not file.is_file():
        raise ValueError(f"prompts {file}: no such file")
    if file.suffix not in (".jsonl", ".txt"):
        raise ValueError(f"{file}: got suffix {file.suffix!r}, expected .jsonl or .txt")
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")  # not splitlines: JSON strings may hold U+2028
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not UTF-8 text (byte {error.start})") from error
    numbered = [(n, line.rstrip("\r")) for n, line in enumerate(lines, start=1) if line.strip()]
    if not numbered:
        raise ValueError(f"{file}: no prompts in it")
    if file.suffix == ".txt":
        return [Prompt(str(n), line) for n, line in numbered]
    return [_row(f"{file}:{n}", n, line) for n, line in numbered]


def _row(place: str, number: int, line: str) -> Prompt:
    row = parse_json_object(line, place)
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = ord(error.object[error.start])
        raise ValueError(f"{place}: got \\u{half:04x} alone, half of a character, expected Unicode text") from error
    except RecursionError as error:
        raise ValueError(f"{place}: not valid JSON ({error})") from error
    identity, reference = str(row.get("id", number)), row.get("reference")
    if reference is not None and not isinstance(reference, str):
        raise ValueError(f'{place}: "reference": got {type(reference).__name__}, expected text')
    text, messages, tools = row.get("prompt"), row.get("messages"), check_tools(place, row.get("tools"))
    if isinstance(text, str) and text:
        return Prompt(identity, text, reference=reference, tools=tools)
    if text is not None or messages is None:
        raise ValueError(f'{place}: expected an object with "prompt" (a non-empty text) or "messages" (a list)')
    messages = _messages(place, messages)
    if messages[-1]["role"] == "assistant":
        reference = messages[-1].get("content") if reference is None else reference
        messages = messages[:-1]
    if not messages:
        raise ValueError(f'{place}: "messages": got the assistant\'s alone, expected one to answer')
    return Prompt(identity, messages=messages, reference=reference, tools=tools)


def _messages(place: str, value: Any) -> Messages:
    if (
        not isinstance(value, list)
        or not value
        or not all(isinstance(m, dict) and isinstance(m.get("role"), str) for m in value)
    ):
        raise ValueError(f'{place}: "messages": expected a non-empty list of objects with "role" and "content"')
    for m in value:
        if m.get("content") is None and m["role"] in ("system", "user"):  # templates would write nothing, or "None"
            raise ValueError(f'{place}: "messages": got no "content" in one of role {m["role"]!r}, expected a text')
    return value


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
