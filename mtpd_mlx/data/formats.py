"""Reading mlx-lm's data files: train/valid/test.jsonl with {"text"}, {"prompt","completion"} or {"messages"}, or a .txt."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mtpd_mlx.files.json_object import parse_json_object
from mtpd_mlx.text.chat_template import check_tools


class TextTokenizer(Protocol):
    """What data needs of a tokenizer (mtpd_mlx.text.tokenizer.Tokenizer has it)."""

    eos_token_ids: frozenset[int]
    eos_token_id: int | None

    @property
    def vocab_size(self) -> int: ...

    @property
    def has_chat_template(self) -> bool: ...

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]: ...

    def encode_batch(self, texts: list[str], add_special_tokens: bool = True) -> list[list[int]]: ...

    def apply_chat_template(
        self,
        messages: list[dict[str, Any]],
        add_generation_prompt: bool = False,
        tools: list[dict[str, Any]] | None = None,
    ) -> str: ...


@dataclass(frozen=True)
class Document:
    """Token ids int32 [n] and which of them count as targets, bool [n]."""

    ids: np.ndarray
    loss_mask: np.ndarray


def read_rows(file: Path) -> list[dict[str, Any]]:
    """Rows of a .jsonl file, or a .txt file as {"text"} rows split at blank lines. Errors name file and line."""
    try:
        content = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not UTF-8 text (byte {error.start})") from error
    if file.suffix == ".txt":
        rows = [{"text": part.strip("\n")} for part in content.split("\n\n") if part.strip()]
    elif file.suffix == ".jsonl":
        rows = [_parse(file, n, line) for n, line in enumerate(content.split("\n"), start=1) if line.strip()]
    else:
        raise ValueError(f"{file}: got a {file.suffix or 'suffix-less'} file, expected .jsonl or .txt")
    if not rows:
        raise ValueError(f"{file}: empty, expected at least one row of text")
    return rows


def _parse(file: Path, number: int, line: str) -> dict[str, Any]:
    row = parse_json_object(line, f"{file}:{number}")
    kinds = {"text": str, "prompt": str, "completion": str, "messages": list, "tokens": list}
    for key, kind in kinds.items():
        if key in row and not isinstance(row[key], kind):
            raise ValueError(f"{file}:{number}: {key!r} is {type(row[key]).__name__}, expected {kind.__name__}")
    if "messages" in row and not (row["messages"] and all(isinstance(m, dict) for m in row["messages"])):
        raise ValueError(f"{file}:{number}: 'messages': expected a list of objects, at least one")
    check_tools(f"{file}:{number}", row.get("tools"))
    if "text" not in row and "messages" not in row and not {"prompt", "completion"} <= row.keys():
        raise ValueError(
            f'{file}:{number}: got keys {sorted(row)}, expected "text", or "prompt" and "completion", or "messages"'
        )
    return row


def tokenize(rows: list[dict[str, Any]], tokenizer: TextTokenizer, mask_prompt: bool) -> list[Document]:
    """Documents as mlx-lm makes them: text gets EOS appended; pairs and messages go through the chat template, with the
    row's "tools". Rows of `mtpd distill-data` bring their own ids: "tokens", of which the first "prompt_tokens" are the prompt.
    """
    if "tokens" in rows[0]:
        return [_given(row, tokenizer, mask_prompt) for row in rows]
    if "prompt" not in rows[0] and "messages" not in rows[0]:
        if mask_prompt:
            raise ValueError('--mask-prompt: got {"text"} rows, expected "prompt" and "completion", or "messages"')
        encoded = tokenizer.encode_batch([_key(r, "text") for r in rows])
        return [_document(_with_eos(ids, tokenizer), 0) for ids in encoded if ids]
    return [_conversation(row, tokenizer, mask_prompt) for row in rows]


def _given(row: dict[str, Any], tokenizer: TextTokenizer, mask_prompt: bool) -> Document:
    ids, prompt = _key(row, "tokens"), row.get("prompt_tokens", 0)
    if not all(type(t) is int and 0 <= t < tokenizer.vocab_size for t in ids):
        raise ValueError(f'data "tokens": expected ids 0..{tokenizer.vocab_size - 1} of this tokenizer')
    if type(prompt) is not int or not 0 <= prompt <= len(ids):
        raise ValueError(f'data "prompt_tokens": got {prompt!r}, expected 0..{len(ids)}')
    return _document(ids, prompt if mask_prompt else 0)


def _key(row: dict[str, Any], key: str) -> Any:
    if key not in row:
        raise ValueError(f"mixed data formats: got a row with keys {sorted(row)}, expected {key!r} as in the first row")
    return row[key]


def _conversation(row: dict[str, Any], tokenizer: TextTokenizer, mask_prompt: bool) -> Document:
    # A pair goes first, as in mlx-lm, where a row has "messages" too.
    conversation = "messages" in row and not {"prompt", "completion"} <= row.keys()
    if conversation:
        messages = row["messages"]
    else:
        messages = [
            {"role": "user", "content": _key(row, "prompt")},
            {"role": "assistant", "content": _key(row, "completion")},
        ]
    if not tokenizer.has_chat_template:
        if conversation:
            raise ValueError('data has "messages" but the tokenizer has no chat template')
        prompt = tokenizer.encode(_key(row, "prompt"))
        completion = tokenizer.encode(_key(row, "completion"), add_special_tokens=False)
        return _document(_with_eos(prompt + completion, tokenizer), len(prompt) if mask_prompt else 0)
    tools = row.get("tools")
    ids = tokenizer.encode(tokenizer.apply_chat_template(messages, tools=tools), add_special_tokens=False)
    offset = 0
    if mask_prompt:
        answered = messages[-1].get("role") == "assistant"
        before = tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=answered, tools=tools)
        offset = len(tokenizer.encode(before, add_special_tokens=False))
    return _document(ids, offset)


def _with_eos(ids: list[int], tokenizer: TextTokenizer) -> list[int]:
    if tokenizer.eos_token_id is None or (ids and ids[-1] in tokenizer.eos_token_ids):
        return ids
    return [*ids, tokenizer.eos_token_id]


def _document(ids: Iterable[int], offset: int) -> Document:
    array = np.asarray(ids, dtype=np.int32)
    return Document(array, np.arange(array.size) >= offset)
