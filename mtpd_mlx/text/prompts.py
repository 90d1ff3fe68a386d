"""Prompt files: what generate, eval and parity read."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtpd_mlx.text.chat_template import Messages, Tools, check_tools


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
    try:
        row = json.loads(line)
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = ord(error.object[error.start])
        raise ValueError(f"{place}: got \\u{half:04x} alone, half of a character, expected Unicode text") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place}: not valid JSON ({str(error).splitlines()[0]})") from error
    if not isinstance(row, dict):
        raise ValueError(f"{place}: got {type(row).__name__}, expected an object")
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
    fits = isinstance(value, list) and value
    if not fits or not all(isinstance(m, dict) and isinstance(m.get("role"), str) for m in value):
        raise ValueError(f'{place}: "messages": expected a non-empty list of objects with "role" and "content"')
    for m in value:
        if m.get("content") is None and m["role"] in ("system", "user"):  # templates would write nothing, or "None"
            raise ValueError(f'{place}: "messages": got no "content" in one of role {m["role"]!r}, expected a text')
    return value
