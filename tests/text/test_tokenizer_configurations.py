"""Ids, special tokens, ends of text and chats as transformers has them, whichever file names a token or holds a template."""

from pathlib import Path

import pytest
from tokenizer_folders import CONFIGURATIONS, NEW, conversations, texts, write_pair

from mtpd_mlx.text.tokenizer import Tokenizer


def check(folder: Path, count: int) -> None:
    transformers = pytest.importorskip("transformers")
    reference = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer.eos_token_id == reference.eos_token_id
    assert tokenizer.vocab_size == len(reference)
    vocabulary = reference.get_vocab()
    assert [tokenizer.token_id(token) for token in NEW] == [vocabulary.get(token) for token in NEW]
    wanted = texts(count)
    for special in (True, False):
        expected = reference(wanted, add_special_tokens=special)["input_ids"]
        assert tokenizer.encode_batch(wanted, add_special_tokens=special) == expected
        assert [tokenizer.encode(text, special) for text in wanted[:20]] == expected[:20]
    for ids in expected[:100]:
        assert tokenizer.decode(ids) == reference.decode(ids, skip_special_tokens=True)
    for messages, tools in conversations(count // 4):
        for prompted in (False, True):
            options = {"add_generation_prompt": prompted, "tools": tools}
            ids = reference.apply_chat_template(messages, return_dict=False, **options)
            assert tokenizer.encode(tokenizer.apply_chat_template(messages, **options), False) == ids


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_ids_as_transformers(name: str, tmp_path: Path) -> None:
    check(write_pair(tmp_path / name, name), 60)


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_ids_of_many_texts_as_transformers(name: str, tmp_path: Path) -> None:
    check(write_pair(tmp_path / name, name), 2000)
