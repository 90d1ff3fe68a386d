"""`read_rows`: rows of a .jsonl or .txt file. Every fault is reported as FILE:LINE.
Called by text/prompts.py (prompts) and data/formats.py (documents)."""

import json
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtpd_mlx.files.json_object import parse_json_object
from mtpd_mlx.text.chat_template import Messages, check_tools
from mtpd_mlx.text.tokenizer import Tokenizer

JSON_LINES, PLAIN = ".jsonl", ".txt"
TEXTS = ("text", "prompt", "completion")  # keys whose values are texts


@dataclass(frozen=True)
class Row:
    """place: FILE:LINE; values: the object of a line, its texts, "messages" and "tools" checked (contents are texts), or the
    one key under which a plain text stands."""

    place: str
    number: int
    values: dict[str, Any]


def is_readable(file: Path) -> bool:
    """A file, or what is read as one: /dev/stdin, the pipe of a shell's <(command)."""
    try:
        mode = file.stat().st_mode
    except OSError:
        return False
    return stat.S_ISREG(mode) or stat.S_ISFIFO(mode) or stat.S_ISCHR(mode) or stat.S_ISSOCK(mode)


def read_rows(file: Path, key: str, paragraphs: bool) -> list[Row]:
    """The rows of a .jsonl file; of a .txt file its lines or, where `paragraphs`, what stands between blank lines, each under
    `key`. What has no suffix and is no file on disk (a pipe) is .jsonl where it begins with "{". ValueError in one line."""
    kind = file.suffix.lower()
    if kind not in (JSON_LINES, PLAIN) and file.is_file():
        raise ValueError(f"{file}: got suffix {file.suffix!r}, expected {JSON_LINES} or {PLAIN}")
    try:
        content = file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{file}:{line}: not UTF-8 text (byte {error.start})") from error
    if kind not in (JSON_LINES, PLAIN):
        kind = JSON_LINES if content.lstrip().startswith("{") else PLAIN
    content = content.replace("\r\n", "\n").replace("\r", "\n")
    lines = content.split("\n")  # not splitlines: JSON strings may hold U+2028
    if kind == JSON_LINES:
        return [Row(f"{file}:{n}", n, _checked(f"{file}:{n}", line)) for n, line in enumerate(lines, 1) if line.strip()]
    texts = _paragraphs(content) if paragraphs else enumerate(lines, 1)
    return [Row(f"{file}:{n}", n, {key: text}) for n, text in texts if text.strip()]


def _paragraphs(content: str) -> Iterator[tuple[int, str]]:
    number = 1
    for part in content.split("\n\n"):
        yield number + len(part) - len(part.lstrip("\n")), part.strip("\n")
        number += part.count("\n") + 2


def _checked(place: str, line: str) -> dict[str, Any]:
    row = parse_json_object(line, place)
    if "\\u" in line:  # only an escape can say half of a character
        _check_whole(place, row)
    for key in TEXTS:
        if key in row and not isinstance(row[key], str):
            raise ValueError(f"{place}: expected str as {key!r}, got {type(row[key]).__name__}")
    check_tools(place, row.get("tools"))
    return row | {"messages": check_messages(place, row["messages"])} if "messages" in row else row


def _check_whole(place: str, row: dict[str, Any]) -> None:
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = ord(error.object[error.start])
        raise ValueError(f"{place}: got \\u{half:04x} alone, half of a character, expected Unicode text") from error
    except RecursionError as error:
        raise ValueError(f"{place}: not valid JSON ({error})") from error


def check_messages(place: str, value: Any) -> Messages:
    """A conversation whose contents are texts: those of parts are joined, and none stands beside calls of tools alone."""
    if (
        not isinstance(value, list)
        or not value
        or not all(isinstance(m, dict) and isinstance(m.get("role"), str) for m in value)
    ):
        raise ValueError(f'{place}: "messages": expected a list of objects, at least one, with "role" and "content"')
    return [message | _content(f'{place}: "messages"', message) for message in value]


def _content(place: str, message: dict[str, Any]) -> dict[str, str]:
    content, role = message.get("content"), message["role"]
    if isinstance(content, str):
        return {}
    if isinstance(content, list):
        return {"content": "".join(_part(place, role, part) for part in content)}
    if content is not None:
        raise ValueError(f'{place}: got {type(content).__name__} as "content" in one of role {role!r}, expected a text')
    if role == "assistant" and isinstance(message.get("tool_calls"), list) and message["tool_calls"]:
        return {}
    raise ValueError(f'{place}: got no "content" in one of role {role!r}, expected a text')


def _part(place: str, role: str, part: Any) -> str:
    if isinstance(part, dict) and part.get("type", "text") == "text" and isinstance(part.get("text"), str):
        text: str = part["text"]
        return text
    kind = repr(part.get("type")) if isinstance(part, dict) else type(part).__name__
    raise ValueError(f'{place}: got a part {kind[:40]} in one of role {role!r}, expected parts of type "text" alone')


@contextmanager
def at(place: str) -> Iterator[None]:
    """A ValueError inside says where it happened."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error


def encode_texts(rows: Sequence[Row], key: str, tokenizer: Tokenizer) -> list[list[int]]:
    """Token ids of the texts under `key`, of all rows at once."""
    try:
        return tokenizer.encode_batch([row.values[key] for row in rows])
    except ValueError:
        for row in rows:
            with at(row.place):
                tokenizer.encode(row.values[key])
        raise
