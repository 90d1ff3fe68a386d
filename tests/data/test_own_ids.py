"""A column "tokens" is believed where mtpd distill-data wrote it; anybody else's is left aside, as mlx-lm does."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny import VOCAB, write_tokenizer

from mtpd_mlx.cli import main
from mtpd_mlx.data.dataset import load_text
from mtpd_mlx.data.formats import MADE_BY, OWN, OWN_CONFIG
from mtpd_mlx.options.train import DataConfig
from mtpd_mlx.text.tokenizer import Tokenizer

CFG = DataConfig(max_seq_length=16, pack=False)


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    write_tokenizer(tmp_path / "tokenizer")
    return Tokenizer.from_folder(tmp_path / "tokenizer")


def rows_of(file: Path, rows: list[dict[str, Any]], tokenizer: Tokenizer) -> list[list[int]]:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    batch = load_text(str(file), CFG, tokenizer).rows
    return [ids[held > 0].tolist() for ids, held in zip(batch.tokens, batch.segments, strict=True)]


@pytest.mark.parametrize("foreign", [5, [11, 12, 13], ["hello", "my"], None])
def test_a_foreign_column_is_left_aside(foreign: Any, tokenizer: Tokenizer, tmp_path: Path) -> None:
    for row in ({"text": "hello"}, {"prompt": "a", "completion": "b"}):
        plain, given = (rows_of(tmp_path / "a.jsonl", [r], tokenizer) for r in (row, row | {"tokens": foreign}))
        assert plain == given


def test_own_ids_are_believed_by_a_mark_in_the_row_or_beside(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """They differ from those of the texts encoded again, which end with an end token."""
    ids = [*tokenizer.encode("ab"), 0, *tokenizer.encode("c")]
    row = {"prompt": "ab<end>", "completion": "c", "tokens": ids, "prompt_tokens": 3}
    again = [*ids, 0]
    assert rows_of(tmp_path / "a.jsonl", [row], tokenizer) == [again]
    assert rows_of(tmp_path / "a.jsonl", [row | {MADE_BY: OWN}], tokenizer) == [ids]
    (tmp_path / OWN_CONFIG).write_text("{}")
    assert rows_of(tmp_path / "a.jsonl", [row], tokenizer) == [ids]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tokens": [1, VOCAB]}, f"ids 0..{VOCAB - 1}"),
        ({"tokens": [1, "2"]}, "expected ids"),
        ({"tokens": 5}, "expected ids"),
        ({"prompt_tokens": 9}, "got 9, expected 0..2"),
        ({"prompt_tokens": None}, "got None, expected 0..2"),
        ({"prompt": "z"}, "the row's 'prompt' is 'z': ids of another tokenizer"),
        ({"completion": "z"}, "the row's 'completion' is 'z': ids of another tokenizer"),
    ],
)
def test_own_ids_are_checked(change: dict[str, Any], words: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    row = {"prompt": "a", "completion": "b", "tokens": tokenizer.encode("ab"), "prompt_tokens": 1, MADE_BY: OWN}
    with pytest.raises(ValueError) as error:
        rows_of(tmp_path / "a.jsonl", [row, row | change], tokenizer)
    assert "a.jsonl:2: " in str(error.value) and words in str(error.value)


def test_what_distill_data_writes_is_marked(tiny_base: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    prompts, own = tmp_path / "p.jsonl", tmp_path / "own"
    prompts.write_text('{"prompt": "say"}\n')
    command = ["distill-data", "--model", str(tiny_base), "--prompts", str(prompts), "--out", str(own)]
    assert main([*command, "--max-tokens", "5", "--valid-share", "0"]) == 0
    row = json.loads((own / "train.jsonl").read_text())
    shutil.copyfile(own / "train.jsonl", tmp_path / "moved.jsonl")
    for file in (own / "train.jsonl", tmp_path / "moved.jsonl"):
        batch = load_text(str(file), CFG, tokenizer).rows
        assert batch.tokens[0, : len(row["tokens"])].tolist() == row["tokens"]


def test_own_ids_are_of_the_model(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "tokenizer" / "added_tokens.json").write_text(json.dumps({"[PAD]": VOCAB}))
    narrow = Tokenizer.from_folder(tmp_path / "tokenizer", VOCAB)
    row = {"prompt": "a", "completion": "", "tokens": [*tokenizer.encode("a"), VOCAB], "prompt_tokens": 1, MADE_BY: OWN}
    with pytest.raises(ValueError, match=rf"a\.jsonl:1: .*expected ids 0\.\.{VOCAB - 1}"):
        rows_of(tmp_path / "a.jsonl", [row], narrow)
