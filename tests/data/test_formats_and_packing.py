"""Data formats, masks, packing and batches that depend on (seed, step) alone."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import write_tokenizer

from mtpd_mlx.data import load_dataset, load_text
from mtpd_mlx.data.formats import Document, read_rows
from mtpd_mlx.data.formats import tokenize as tokenize_rows
from mtpd_mlx.data.packing import pack, pad
from mtpd_mlx.options.train import DataConfig
from mtpd_mlx.text.rows import Row
from mtpd_mlx.text.tokenizer import Tokenizer

TEMPLATE = (
    "{% for m in messages %}{{ m['role'][0] }}:{{ m['content'] }};{% endfor %}{% if add_generation_prompt %}a:{% endif %}"
)


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    write_tokenizer(tmp_path / "plain")
    return Tokenizer.from_folder(tmp_path / "plain")


@pytest.fixture
def chat_tokenizer(tmp_path: Path) -> Tokenizer:
    folder = tmp_path / "chat"
    write_tokenizer(folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": TEMPLATE}))
    return Tokenizer.from_folder(folder)


def write(file: Path, rows: list[Any]) -> Path:
    file.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return file


def tokenize(rows: list[dict[str, Any]], tokenizer: Tokenizer, mask_prompt: bool) -> list[Document]:
    return tokenize_rows([Row(f"a.jsonl:{n}", n, row) for n, row in enumerate(rows, 1)], tokenizer, mask_prompt)


def test_text_gets_one_end_token(tokenizer: Tokenizer) -> None:
    first, second = tokenize([{"text": "abc"}, {"text": "de<end>"}], tokenizer, mask_prompt=False)
    assert tokenizer.decode(first.ids.tolist(), skip_special_tokens=False) == "abc<end>"
    assert second.ids.tolist().count(0) == 1 and first.loss_mask.all()


def test_prompts_are_masked_as_in_mlx_lm(chat_tokenizer: Tokenizer, tokenizer: Tokenizer) -> None:
    pair = {"prompt": "hi", "completion": "yes"}
    messages = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]}
    for row in (pair, messages, pair | {"messages": [{"role": "user", "content": "other"}]}):  # a pair goes first, as in mlx-lm
        (document,) = tokenize([row], chat_tokenizer, mask_prompt=True)
        text = chat_tokenizer.decode(document.ids.tolist())
        assert text == "u:hi;a:yes;"
        assert chat_tokenizer.decode(document.ids[document.loss_mask].tolist()) == "yes;"
    (document,) = tokenize([pair], tokenizer, mask_prompt=True)
    assert tokenizer.decode(document.ids[document.loss_mask].tolist(), skip_special_tokens=False) == "yes<end>"
    with pytest.raises(ValueError, match="no chat template"):
        tokenize([messages], tokenizer, mask_prompt=False)
    with pytest.raises(ValueError, match="--mask-prompt: got"):
        tokenize([{"text": "a"}], tokenizer, mask_prompt=True)


def test_tools_of_a_row_reach_the_template(tmp_path: Path) -> None:
    """As mlx-lm's data sets: they are part of the prompt, with and without a mask."""
    write_tokenizer(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    template = "{% for t in tools or [] %}[{{ t['name'] }}]{% endfor %}" + TEMPLATE
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": template}))
    tokenizer = Tokenizer.from_folder(tmp_path)
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
    for row in ({"messages": messages}, {"prompt": "hi", "completion": "yes"}):
        for tools, text in (([{"name": "abc"}], "[abc]u:hi;a:yes;"), (None, "u:hi;a:yes;")):
            (document,) = tokenize([row | {"tools": tools}], tokenizer, mask_prompt=True)
            assert tokenizer.decode(document.ids.tolist()) == text
            assert tokenizer.decode(document.ids[document.loss_mask].tolist()) == "yes;"
    with pytest.raises(ValueError, match=r'a\.jsonl:1: "tools": expected a list of objects'):
        read_rows(write(tmp_path / "a.jsonl", [{"messages": messages, "tools": "abc"}]))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ("empty",)),
        (b"\n\n", ("empty",)),
        (b'{"text": "a"}\n{oops\n', (":2", "not valid JSON")),
        (b"[1]\n", (":1", "list", "object")),
        (b'{"other": "a"}\n', (":1", "other", '"text"')),
        (b'{"text": null}\n', (":1", "NoneType", "str")),
        (b"\xff\xfe", ("UTF-8",)),
        (b'{"messages": []}\n', (":1", "messages", "at least one")),
        (b'{"messages": [1]}\n', (":1", "messages", "objects")),
    ],
)
def test_bad_rows_are_one_line(content: bytes, words: tuple[str, ...], tmp_path: Path) -> None:
    file = tmp_path / "train.jsonl"
    file.write_bytes(content)
    with pytest.raises(ValueError) as error:
        read_rows(file)
    assert "\n" not in str(error.value) and all(w in str(error.value) for w in ("train.jsonl", *words))


def test_mixed_formats_are_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="mixed data formats"):
        tokenize([{"text": "a"}, {"prompt": "a", "completion": "b"}], tokenizer, mask_prompt=False)
    for first in ({"prompt": "a", "completion": "b"}, {"text": "a", "prompt": "b"}):
        with pytest.raises(ValueError, match=r"mixed data formats: got a row with keys .*'completion'"):
            tokenize([first, {"text": "a", "prompt": "b"}], tokenizer, mask_prompt=False)


def test_a_text_that_is_not_unicode_is_said_with_its_file(tokenizer: Tokenizer, tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "fine"}\n{"text": "half a \\ud83d pair"}\n')  # JSON's escapes can say what is no text
    with pytest.raises(ValueError, match=r"a\.jsonl:2: got \\ud83d alone, half of a character"):
        load_text(str(file), DataConfig(), tokenizer)


def documents(*lengths: int) -> list[Document]:
    start, made = 10, []
    for n in lengths:
        made.append(Document(np.arange(start, start + n, dtype=np.int32), np.arange(n) > 0))
        start += n
    return made


def test_packing_keeps_every_token_and_marks_documents() -> None:
    batch = pack(documents(3, 5, 2), 4)
    assert batch.tokens.tolist() == [[10, 11, 12, 13], [14, 15, 16, 17], [18, 19, 0, 0]]
    assert batch.segments.tolist() == [[1, 1, 1, 2], [1, 1, 1, 1], [1, 1, 0, 0]]
    assert batch.loss_mask.tolist() == [[False, True, True, False], [True] * 4, [False, True, False, False]]


def test_padding_puts_one_document_in_a_row() -> None:
    batch = pad(documents(3, 6), 4)
    assert batch.tokens.tolist() == [[10, 11, 12, 0], [13, 14, 15, 16]]
    assert batch.segments.tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]


def test_batches_depend_on_seed_and_step_alone(tokenizer: Tokenizer, tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", [{"text": f"document {i:03d}"} for i in range(50)])
    cfg = DataConfig(data=(str(tmp_path),), max_seq_length=16, batch_size=3)
    a, b, other = (load_dataset(cfg, tokenizer, seed).train for seed in (0, 0, 1))
    for step in (0, 7, 100, 3):
        assert np.array_equal(a.batch(step).tokens, b.batch(step).tokens)
    assert any(not np.array_equal(a.batch(s).tokens, other.batch(s).tokens) for s in range(3))
    assert a.sha256 == other.sha256
    rows = a.num_rows
    seen = np.concatenate([a.batch(s).tokens for s in range(rows)])[:rows]
    assert sorted(map(tuple, seen.tolist())) == sorted(map(tuple, a.rows.tokens.tolist()))


def test_validation_split_and_final_batch(tokenizer: Tokenizer, tmp_path: Path) -> None:
    file = tmp_path / "book.txt"
    file.write_text("\n\n".join(f"paragraph {i}" for i in range(60)))
    cfg = DataConfig(data=(str(file),), max_seq_length=16, batch_size=4, valid_share=0.1)
    splits = load_dataset(cfg, tokenizer)
    assert splits.valid is not None
    whole = load_text(str(file), cfg, tokenizer)
    assert splits.train.num_rows + splits.valid.num_rows == whole.num_rows
    assert splits.train.num_tokens + splits.valid.num_tokens == whole.num_tokens
    batches = list(splits.valid.iter_batches(4))
    assert all(b.tokens.shape == (4, 16) for b in batches)
    assert sum((b.segments > 0).sum() for b in batches) == splits.valid.num_tokens
    with pytest.raises(ValueError, match="too few"):
        load_dataset(DataConfig(data=(str(file),), max_seq_length=100000), tokenizer)


def test_a_folder_without_valid_jsonl_is_split_as_a_file_is(tokenizer: Tokenizer, tmp_path: Path) -> None:
    rows = [{"text": f"document number {i:03d}"} for i in range(60)]
    file = write(tmp_path / "train.jsonl", rows)

    def load(place: Path, share: float = 0.1) -> Any:
        return load_dataset(DataConfig((str(place),), max_seq_length=16, batch_size=4, valid_share=share), tokenizer)

    for part in ("train", "valid"):
        assert getattr(load(tmp_path), part).sha256 == getattr(load(file), part).sha256
    assert load(tmp_path, 0.0).valid is None
    write(tmp_path / "valid.jsonl", rows[:7])
    own = load(tmp_path)
    assert own.train.num_rows == load(tmp_path, 0.0).train.num_rows and own.valid.num_rows < 12
    (tmp_path / "valid.jsonl").write_text("")
    assert load(tmp_path).valid is None, "an empty file says that nothing is held out"


def test_a_byte_order_mark_is_no_text(tokenizer: Tokenizer, tmp_path: Path) -> None:
    for name, text in (("a.jsonl", '{"text": "abc"}'), ("b.txt", "abc")):
        (tmp_path / name).write_text(f"\ufeff{text}\n", encoding="utf-8")
        assert [row.values for row in read_rows(tmp_path / name)] == [{"text": "abc"}]


def test_missing_places(tokenizer: Tokenizer, tmp_path: Path) -> None:
    for data, word in ((tmp_path / "none", "no such file or folder"), (tmp_path, "no train.jsonl")):
        with pytest.raises(ValueError, match=word):
            load_dataset(DataConfig(data=(str(data),)), tokenizer)
