"""`read_rows`, `tokenize`: documents from mlx-lm's data files (train/valid/test.jsonl, or a .txt).
Called by data/dataset.py, data/own_folder.py and the exporter's draft vocabulary."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mtpd_mlx.text.rows import Row, at, encode_texts
from mtpd_mlx.text.rows import read_rows as read_file
from mtpd_mlx.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)
OWN_CONFIG = "distill_config.json"  # what mtpd distill-data leaves beside its rows
MADE_BY, OWN = "made_by", "mtpd distill-data"  # and in each row
GIVEN = ("tokens", "prompt_tokens")  # ids, and how many of them are the prompt's


@dataclass(frozen=True)
class Document:
    """Token ids int32 [n] and which of them count as targets, bool [n]."""

    ids: np.ndarray
    loss_mask: np.ndarray


def read_rows(file: Path) -> list[Row]:
    """Rows of a .jsonl file, or a .txt file as {"text"} rows split at blank lines. Errors name file and line."""
    rows = read_file(file, "text", paragraphs=True)
    if not rows:
        raise ValueError(f"{file}: empty, expected at least one row of text")
    for row in rows:
        if "text" not in row.values and "messages" not in row.values and not {"prompt", "completion"} <= row.values.keys():
            expected = '"text", or "prompt" and "completion", or "messages"'
            raise ValueError(f"{row.place}: got keys {sorted(row.values)}, expected {expected}")
    ours = (file.parent / OWN_CONFIG).is_file()
    foreign = ["tokens" in row.values and not (ours or row.values.get(MADE_BY) == OWN) for row in rows]
    if any(foreign):
        logger.info('%s: "tokens" left aside: not written by mtpd distill-data', rows[foreign.index(True)].place)
    return [_without_ids(row) if aside else row for row, aside in zip(rows, foreign, strict=True)]


def _without_ids(row: Row) -> Row:
    return replace(row, values={key: value for key, value in row.values.items() if key not in GIVEN})


def tokenize(rows: Sequence[Row], tokenizer: Tokenizer, mask_prompt: bool) -> list[Document]:
    """Documents as mlx-lm makes them: text gets EOS appended; pairs and messages go through the chat template, with the
    row's "tools". Rows of `mtpd distill-data` bring their own ids: "tokens", of which the first "prompt_tokens" are the prompt.
    """
    first = rows[0].values
    if "tokens" in first:
        return [_given(row, tokenizer, mask_prompt) for row in rows]
    if "prompt" not in first and "messages" not in first:
        if mask_prompt:
            raise ValueError(
                f'{rows[0].place}: --mask-prompt: got {{"text"}} rows, expected "prompt" and "completion", or "messages"'
            )
        for row in rows:
            _key(row, "text")
        return [_document(_with_eos(ids, tokenizer), 0) for ids in encode_texts(rows, "text", tokenizer) if ids]
    return [_conversation(row, tokenizer, mask_prompt) for row in rows]


def _given(row: Row, tokenizer: Tokenizer, mask_prompt: bool) -> Document:
    """ValueError where the ids do not say what the row's texts do: they are another tokenizer's."""
    ids, prompt = _key(row, "tokens"), row.values.get("prompt_tokens")
    if not isinstance(ids, list) or not all(type(t) is int and 0 <= t < tokenizer.usable for t in ids):
        raise ValueError(f'{row.place}: "tokens": expected ids 0..{tokenizer.usable - 1} of this tokenizer')
    if type(prompt) is not int or not 0 <= prompt <= len(ids):
        raise ValueError(f'{row.place}: "prompt_tokens": got {prompt!r}, expected 0..{len(ids)}')
    said = (tokenizer.decode(ids[:prompt], skip_special_tokens=False), tokenizer.decode(ids[prompt:]))
    for text, key in zip(said, ("prompt", "completion"), strict=True):
        if text != _key(row, key):
            got = f"got ids that say {text[:40]!r}, the row's {key!r} is {row.values[key][:40]!r}"
            raise ValueError(f'{row.place}: "tokens": {got}: ids of another tokenizer')
    return _document(ids, prompt if mask_prompt else 0)


def _key(row: Row, key: str) -> Any:
    if key not in row.values:
        got = f"got a row with keys {sorted(row.values)}"
        raise ValueError(f"{row.place}: mixed data formats: {got}, expected {key!r} as in the first row")
    return row.values[key]


def _conversation(row: Row, tokenizer: Tokenizer, mask_prompt: bool) -> Document:
    # A pair goes first, as in mlx-lm, where a row has "messages" too.
    if "messages" in row.values and not {"prompt", "completion"} <= row.values.keys():
        messages = row.values["messages"]
    else:
        pair = (("user", _key(row, "prompt")), ("assistant", _key(row, "completion")))
        messages = [{"role": role, "content": text} for role, text in pair]
        if not tokenizer.has_chat_template:
            with at(row.place):
                prompt, completion = tokenizer.encode(pair[0][1]), tokenizer.encode(pair[1][1], add_special_tokens=False)
            return _document(_with_eos(prompt + completion, tokenizer), len(prompt) if mask_prompt else 0)
    if not tokenizer.has_chat_template:
        raise ValueError(
            f'{row.place}: got "messages", but the tokenizer has no chat template; give "text" or '
            '"prompt" and "completion" instead'
        )
    tools = row.values.get("tools")
    with at(row.place):
        ids = tokenizer.encode(tokenizer.apply_chat_template(messages, tools=tools), add_special_tokens=False)
        if not mask_prompt or len(messages) < 2:
            return _document(ids, 0)
        answered = messages[-1]["role"] == "assistant"
        before = tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=answered, tools=tools)
        return _document(ids, common_prefix(ids, tokenizer.encode(before, add_special_tokens=False)))


def common_prefix(a: list[int], b: list[int]) -> int:
    """How many tokens both begin with. A template's prompt for an answer may say more than the conversation does (it opens a
    thought that the answer has not): the answer begins where they part."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _with_eos(ids: list[int], tokenizer: Tokenizer) -> list[int]:
    if tokenizer.eos_token_id is None or (ids and ids[-1] in tokenizer.eos_token_ids):
        return ids
    return [*ids, tokenizer.eos_token_id]


def _document(ids: Iterable[int], offset: int) -> Document:
    array = np.asarray(ids, dtype=np.int32)
    return Document(array, np.arange(array.size) >= offset)
