"""One reader of rows for prompts and training data: contents, suffixes, pipes, and every fault with FILE:LINE."""

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_frontend import byte_tokenizer

from mtpd_mlx.data.dataset import load_text
from mtpd_mlx.data.own_text import encode
from mtpd_mlx.options.distill import DistillConfig
from mtpd_mlx.options.train import DataConfig
from mtpd_mlx.text.prompts import encode_prompts, read_prompts
from mtpd_mlx.text.rows import check_messages

TEMPLATE = (
    "{% for m in messages %}{% if 'refuse' in (m.content or '') %}{{ raise_exception('not this') }}{% endif %}"
    "{{ m.role[0] }}:{{ m.content }};{% endfor %}"
)
TOKENIZER = byte_tokenizer(TEMPLATE)
READERS: dict[str, Callable[[Path], Any]] = {
    "prompts": lambda file: encode_prompts(file, TOKENIZER, 99),
    "training": lambda file: load_text(str(file), DataConfig(max_seq_length=16), TOKENIZER),
    "distill": lambda file: encode(file, TOKENIZER, DistillConfig()),
}
USER, ANSWER = {"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}
CALL = [{"type": "function", "function": {"name": "f", "arguments": {}}}]


def write(file: Path, rows: list[Any]) -> Path:
    file.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8")
    return file


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"messages": [{"role": "user", "content": None}, ANSWER]}, ('no "content"', "'user'")),
        ({"messages": [{"role": "user"}, ANSWER]}, ('no "content"', "'user'")),
        ({"messages": [USER, {"role": "assistant", "content": None}]}, ('no "content"', "'assistant'")),
        ({"messages": [USER, ANSWER | {"content": None, "tool_calls": []}]}, ('no "content"', "'assistant'")),
        ({"messages": [USER | {"content": None, "tool_calls": CALL}, ANSWER]}, ('no "content"', "'user'")),
        ({"messages": [USER, {"role": "tool", "content": 5}, ANSWER]}, ("got int", "'tool'")),
        ({"messages": [USER | {"content": {"text": "x"}}, ANSWER]}, ("got dict", "expected a text")),
        ({"messages": [USER | {"content": [{"type": "image_url", "image_url": "u"}]}, ANSWER]}, ("part 'image_url'",)),
        ({"messages": [USER | {"content": [{"type": "text", "text": None}]}, ANSWER]}, ("part 'text'",)),
        ({"messages": [USER | {"content": ["x"]}, ANSWER]}, ("part str",)),
        ({"messages": [{"role": 1, "content": "x"}, ANSWER]}, ('with "role" and "content"',)),
        ({"messages": {"role": "user"}}, ("a list of objects",)),
        ({"messages": [USER, ANSWER], "tools": "f"}, ('"tools": expected a list of objects',)),
        ({"messages": [{"role": "user", "content": "refuse"}, ANSWER]}, ("chat template: not this",)),
        ('{"messages": [{"role": "user", "content": "\\ud83d"}]}', ("got \\ud83d alone",)),
        ('{"messages": ', ("not valid JSON",)),
        ([1], ("got list, expected an object",)),
    ],
)
def test_a_fault_names_the_row(reader: str, row: Any, words: tuple[str, ...], tmp_path: Path) -> None:
    good = {"messages": [USER, ANSWER]}
    file = write(tmp_path / "p.jsonl", [*[good] * 20, row, *[good] * 20])
    with pytest.raises(ValueError) as error:
        READERS[reader](file)
    message = str(error.value)
    assert message.startswith(f"{file}:21: ") and "\n" not in message
    assert all(word in message for word in words), message


def test_a_fault_of_a_text_names_its_row(tmp_path: Path) -> None:
    """Texts are encoded all at once."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import models, pre_tokenizers

    from mtpd_mlx.text.tokenizer import Tokenizer

    backend = Backend(models.WordLevel({"a": 0, "b": 1}))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    narrow = Tokenizer(backend, None, frozenset())
    file = write(tmp_path / "p.jsonl", [{"text": "ab"}, {"text": "aéb"}, {"text": "b"}])
    for read in (
        lambda: load_text(str(file), DataConfig(), narrow),
        lambda: encode(file, narrow, DistillConfig()),
    ):
        with pytest.raises(ValueError, match=r"p\.jsonl:2: text: got 'é' \(U\+00E9\)"):
            read()
    plain = tmp_path / "p.txt"
    plain.write_text("ab\n\n\n\nb\n\naé", encoding="utf-8")
    with pytest.raises(ValueError, match=r"p\.txt:7: text: got 'é'"):
        load_text(str(plain), DataConfig(), narrow)
    with pytest.raises(ValueError, match=r"p\.txt:7: prompt 7: text: got 'é'"):
        encode_prompts(plain, narrow, 99)


def test_parts_of_text_are_joined_and_calls_of_tools_need_no_text() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}, {"text": "c"}]
    said = check_messages("p:1", [USER | {"content": parts}, {"role": "assistant", "content": None, "tool_calls": CALL}])
    assert said[0] == {"role": "user", "content": "abc"} and said[1]["tool_calls"] == CALL
    assert TOKENIZER.apply_chat_template(said) == "u:abc;a:;"


def test_prompts_and_training_rows_of_parts_are_those_of_texts(tmp_path: Path) -> None:
    texts = {"messages": [USER, ANSWER]}
    parts = {"messages": [USER | {"content": [{"type": "text", "text": "x"}]}, ANSWER]}
    one, other = (write(tmp_path / f"{i}.jsonl", [row]) for i, row in enumerate((texts, parts)))
    assert [p.tokens for p in READERS["prompts"](one)] == [p.tokens for p in READERS["prompts"](other)]
    assert READERS["training"](one).sha256 == READERS["training"](other).sha256


def test_one_rule_for_prompts_of_files(tmp_path: Path) -> None:
    """What a user says goes through the chat template, for generate, eval and distill-data."""
    file = write(tmp_path / "p.jsonl", [{"prompt": "x"}])
    assert TOKENIZER.decode(READERS["prompts"](file)[0].tokens) == TOKENIZER.decode(READERS["distill"](file)[0]) == "u:x;"
    raw = encode_prompts(file, TOKENIZER, 99, chat=False)
    assert TOKENIZER.decode(raw[0].tokens) == "x"
    assert encode(file, TOKENIZER, DistillConfig(ignore_chat_template=True))[0] == raw[0].tokens


@pytest.mark.parametrize("name", ["p.JSONL", "p.Jsonl", "p.TXT"])
def test_suffixes_in_capitals(name: str, tmp_path: Path) -> None:
    row = "x" if name == "p.TXT" else {"prompt": "x", "text": "x"}
    file = write(tmp_path / name, [row])
    assert [prompt.text for prompt in read_prompts(file)] == ["x"]
    if name != "p.TXT":
        file = write(tmp_path / name, [{"text": "x"}])
    assert load_text(str(file), DataConfig(max_seq_length=16), TOKENIZER).num_tokens == 2


def piped(content: str) -> tuple[Path, threading.Thread]:
    """As a shell's <(command) gives it."""
    reading, writing = os.pipe()

    def feed() -> None:
        with os.fdopen(writing, "w", encoding="utf-8") as f:
            f.write(content)

    thread = threading.Thread(target=feed)
    thread.start()
    return Path(f"/dev/fd/{reading}"), thread


@pytest.mark.parametrize("content", ['\ufeff{"prompt": "x"}\n{"prompt": "y"}\n', "x\r\n\r\ny"])
def test_pipes_are_files(content: str) -> None:
    for read in (read_prompts, lambda file: encode(file, TOKENIZER, DistillConfig())):
        file, thread = piped(content)
        assert len(read(file)) == 2
        thread.join()


def test_a_byte_that_is_not_utf8_is_found(tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    file.write_bytes(b'{"prompt": "x"}\n{"prompt": "\xff"}\n')
    with pytest.raises(ValueError, match=r"p\.jsonl:2: not UTF-8 text \(byte 28\)"):
        read_prompts(file)
