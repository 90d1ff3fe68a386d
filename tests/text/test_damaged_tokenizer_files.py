"""Files beside tokenizer.json that hold anything: the folder is used, or refused in one line."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from tokenizer_folders import CONFIGURATIONS, conversations, texts, write_pair

from mtpd_mlx.text.tokenizer import Tokenizer

TOKEN_KEYS = ("eos_token", "bos_token", "extra_special_tokens", "additional_special_tokens", "added_tokens_decoder")
KEYS = (*TOKEN_KEYS, "chat_template", "image_token", "split_special_tokens", "eos_token_id", "vocab_size")
JUNK: tuple[Any, ...] = (None, 0, -1, True, 1.5, "", "x", "\ud800", "a" * 1000, [], ["x"], [None], [[1]], {}, {"a": 1})
JUNK += ({"content": "z"}, {"content": 5}, {"5": {"content": "q"}}, [{"name": "default"}], {"default": None})


def changed(value: Any, rng: random.Random) -> Any:
    """Another value in its place, or somewhere in it."""
    if rng.random() < 0.2 or not isinstance(value, dict | list) or not value:
        return rng.choice(JUNK)
    if isinstance(value, list):
        place = rng.randrange(len(value))
        return [changed(each, rng) if i == place else each for i, each in enumerate(value)]
    if rng.random() < 0.3:
        return value | {rng.choice(KEYS): rng.choice(JUNK)}
    key = rng.choice(sorted(value))
    return value | {key: changed(value[key], rng)}


def use(folder: Path) -> None:
    tokenizer = Tokenizer.from_folder(folder)
    tokenizer.encode_batch(texts(5))
    for messages, tools in conversations(2):
        tokenizer.encode(tokenizer.apply_chat_template(messages, True, tools))


@pytest.mark.parametrize("seeds", [range(60), pytest.param(range(60, 3000), marks=pytest.mark.slow)], ids=["few", "many"])
def test_damaged_files_are_one_line(seeds: range, tmp_path: Path) -> None:
    refused = 0
    for seed in seeds:
        rng = random.Random(seed)
        folder = write_pair(tmp_path / str(seed), rng.choice(list(CONFIGURATIONS)[:-1]))  # the bundled one is large
        (folder / "generation_config.json").write_text('{"eos_token_id": [1, 2]}')
        (folder / "config.json").write_text('{"vocab_size": 5000, "eos_token_id": 1}')
        use(folder)
        files = sorted(file for file in folder.glob("*.json") if file.name != "tokenizer.json")
        file = rng.choice(files)
        file.write_text(json.dumps(changed(json.loads(file.read_text()), rng)))
        try:
            use(folder)
        except ValueError as error:
            refused += 1
            assert "\n" not in str(error)
    assert 0 < refused < len(seeds)
