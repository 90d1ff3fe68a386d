"""What a tokenizer folder cannot be used for is said in one line: ends of text, unknown characters, tokens the model lacks."""

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tiny import VOCAB, write_tokenizer
from tokenizers import models, pre_tokenizers

from mtpd_mlx.text.tokenizer import Tokenizer
from mtpd_mlx.text.tokenizer_files import copy_tokenizer

CHAT = [{"role": "user", "content": "q"}]
ANSWERS = "{% for m in messages %}{{ m.content }}{% endfor %}"


def folder_with(folder: Path, **files: Any) -> Path:
    """A character-level tokenizer (VOCAB tokens, all of the model's) with JSON files beside it."""
    write_tokenizer(folder)
    for name, values in ({"config": {"vocab_size": VOCAB}} | files).items():
        (folder / f"{name}.json").write_text(json.dumps(values))
    return folder


def refusal(folder: Path) -> str:
    with pytest.raises(ValueError) as error:
        Tokenizer.from_folder(folder)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"eos_token": "</s>"}, ("eos_token: got '</s>'", "no token of this model", f"is {VOCAB}, expected 0..{VOCAB - 1}")),
        ({"eos_token": ""}, ("eos_token: got ''", "expected a token")),
        ({"eos_token": 5}, ("eos_token: got '5'", "expected a token")),
        ({"eos_token": ["</s>"]}, ("eos_token: got", "expected a token")),
        ({"eos_token": {"content": None}}, ("eos_token: got", "expected a token")),
        ({"added_tokens_decoder": ["x"]}, ("added_tokens_decoder: got list", "expected an object")),
        ({"added_tokens_decoder": {"x": {"content": "y"}}}, ("added_tokens_decoder: got 'x'", "token id")),
        ({"added_tokens_decoder": {"5": "y", "6": {}}}, ("added_tokens_decoder: 6: got", "expected a token")),
        ({"added_tokens_decoder": {"5": {"content": "y", "lstrip": 3}}}, ("true or false",)),
        ({"additional_special_tokens": "x"}, ("additional_special_tokens: got str", "expected a list")),
        ({"additional_special_tokens": [7]}, ("got '7'", "expected a token")),
        ({"chat_template": 5}, ("chat_template: got int", "expected a template")),
        ({"chat_template": [{"template": "x"}]}, ("chat_template: expected a list of objects",)),
        ({"chat_template": [{"name": "default"}]}, ("chat_template: got NoneType",)),
    ],
)
def test_what_is_no_token_or_template_is_refused(config: dict[str, Any], words: tuple[str, ...], tmp_path: Path) -> None:
    message = refusal(folder_with(tmp_path, tokenizer_config=config))
    assert all(word in message for word in words), message


def test_other_tokens_may_be_empty(tmp_path: Path) -> None:
    config = {"eos_token": "<end>", "bos_token": "", "chat_template": "[{{ bos_token }}]"}
    tokenizer = Tokenizer.from_folder(folder_with(tmp_path, tokenizer_config=config))
    assert tokenizer.apply_chat_template(CHAT) == "[]" and tokenizer.vocab_size == VOCAB


def test_an_end_of_text_that_the_model_has_room_for_is_one(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, tokenizer_config={"eos_token": "</s>"}, config={"vocab_size": VOCAB + 1})
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer.eos_token_ids == {VOCAB} and tokenizer.encode("a</s>")[-1] == VOCAB


def test_ends_of_text_as_mlx_lm_has_them(tmp_path: Path) -> None:
    """All of eos_token and of generation_config.json, or else config.json."""
    load = pytest.importorskip("mlx_lm.tokenizer_utils").load
    given = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<end>"}
    config = {"model_type": "llama", "vocab_size": VOCAB, "eos_token_id": [3, 4]}
    folder = folder_with(tmp_path, tokenizer_config=given, config=config)
    assert Tokenizer.from_folder(folder).eos_token_ids == load(folder, eos_token_ids=[3, 4]).eos_token_ids == {0, 3, 4}
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, VOCAB + 5]}))
    assert Tokenizer.from_folder(folder).eos_token_ids == {0, 7}, "a token beyond the vocabulary never comes"
    (folder / "generation_config.json").unlink()
    (folder / "config.json").write_text(json.dumps({"text_config": {"vocab_size": VOCAB, "eos_token_id": 9}}))
    assert Tokenizer.from_folder(folder).eos_token_ids == {0, 9}


def test_a_token_more_than_the_model_has_is_refused_where_it_occurs(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, added_tokens={"[PAD]": VOCAB})
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer.vocab_size == VOCAB + 1 and len(tokenizer.encode("abc")) == 3
    for encode in (tokenizer.encode, lambda text: tokenizer.encode_batch(["fine", text])):
        with pytest.raises(ValueError, match=rf"^text: got token '\[PAD\]' \({VOCAB}\), expected tokens of the model's"):
            encode("a[PAD]b")
    assert Tokenizer.from_folder(folder, VOCAB + 1).encode("[PAD]") == [VOCAB], "a model that is given goes first"


@pytest.mark.parametrize(
    ("model", "split", "text", "named"),
    [
        (models.WordLevel({"a": 0, "b": 1}), pre_tokenizers.Split("", "isolated"), "abé", "'é' (U+00E9)"),
        (models.WordLevel({"hello": 0, "caf": 1}), pre_tokenizers.Whitespace(), "hello café", "'café'"),
        (models.Unigram([("a", -1.0), ("b", -1.0)]), None, "ab中", "'中' (U+4E2D)"),
        (models.WordPiece({"a": 0}, unk_token="[UNK]"), pre_tokenizers.Whitespace(), "a x", "'x' (U+0078)"),
    ],
)
def test_an_unknown_character_without_a_token_for_it_is_named(model: Any, split: Any, text: str, named: str) -> None:
    backend = tokenizers.Tokenizer(model)
    if split is not None:
        backend.pre_tokenizer = split
    tokenizer = Tokenizer(backend, None, frozenset())
    for encode in (tokenizer.encode, lambda given: tokenizer.encode_batch(["", given])):
        with pytest.raises(ValueError, match=r"^text: got .*, which this tokenizer has no token for \([^\n]*\)$") as error:
            encode(text)
        assert f"got {named}, which" in str(error.value)


def test_templates_by_name(tmp_path: Path) -> None:
    named = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
    tokenizer = Tokenizer.from_folder(folder_with(tmp_path, tokenizer_config={"chat_template": named}))
    assert tokenizer.apply_chat_template(CHAT) == "D"
    assert tokenizer.apply_chat_template(CHAT, tools=[{"name": "f"}]) == tokenizer.apply_chat_template(CHAT, tools=[]) == "T"
    tokenizer = Tokenizer.from_folder(folder_with(tmp_path, tokenizer_config={"chat_template": named[:1]}))
    assert tokenizer.has_chat_template and tokenizer.apply_chat_template(CHAT, tools=[{"name": "f"}]) == "T"
    with pytest.raises(ValueError, match=r"^chat template: got several by name \('tool_use'\), expected 'default' among them$"):
        tokenizer.apply_chat_template(CHAT)


def test_a_copy_holds_every_template(tmp_path: Path) -> None:
    source, target = folder_with(tmp_path / "a", added_tokens={"[PAD]": VOCAB}), tmp_path / "b"
    (source / "chat_template.jinja").write_text(ANSWERS)
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates" / "tool_use.jinja").write_text("T")
    target.mkdir()
    copy_tokenizer(source, target)
    assert not any(path.is_dir() for path in target.iterdir())
    for folder in (source, target):
        tokenizer = Tokenizer.from_folder(folder)
        assert tokenizer.token_id("[PAD]") == VOCAB
        assert tokenizer.apply_chat_template(CHAT) == "q" and tokenizer.apply_chat_template(CHAT, tools=[]) == "T"
