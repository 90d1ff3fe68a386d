"""--stop: escapes as in --prompt, and special tokens, alone or among text, on both runtimes' one front end."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from mtpd_mlx.options.text import GenerateOptions, unescaped
from mtpd_mlx.speculative.protocol import Round
from mtpd_mlx.text.generate import run_generate
from mtpd_mlx.text.streaming import StopMatcher
from mtpd_mlx.text.tokenizer import Tokenizer

SPECIAL = "<|user|>"


class Scripted:
    """A backend that says one text."""

    num_draft_tokens, capacity, length = 0, 1000, 0

    def __init__(self, tokens: list[int]):
        self.tokens = tokens

    def rewind_to(self, length: int) -> None:
        self.length, self.rest = length, list(self.tokens)

    def prefill(self, tokens: list[int]) -> int:
        self.length += len(tokens)
        return self.rest.pop(0)

    def step(self, token: int) -> int:
        self.length += 1
        return self.rest.pop(0)

    def round(self, token: int) -> Round:
        return Round([self.step(token)], 0, 0)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = tokenizers.Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    backend.add_special_tokens([SPECIAL, "<|end|>"])
    return Tokenizer(backend, None, frozenset())


@pytest.mark.parametrize(
    ("stop", "text", "reason"),
    [
        ((r"\n",), "one", "stop"),
        ((r"\n\tt",), "one", "stop"),
        (("\n",), "one", "stop"),
        ((SPECIAL,), "one\n\ttwo é", "stop"),
        ((f"é{SPECIAL}",), "one\n\ttwo ", "stop"),
        ((f"{SPECIAL}four",), "one\n\ttwo é", "stop"),
        ((f"{SPECIAL}five",), "one\n\ttwo éfour", "length"),
        (("éfour",), "one\n\ttwo éfour", "length"),  # a special token stands between
        (("<|end|>", "four"), "one\n\ttwo é", "stop"),
        (("|user|",), "one\n\ttwo éfour", "length"),  # only whole ones
        ((), "one\n\ttwo éfour", "length"),
    ],
)
def test_stop_texts(stop: tuple[str, ...], text: str, reason: str, tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode(f"one\n\ttwo é{SPECIAL}four")
    out = io.StringIO()
    options = GenerateOptions(prompt="x", stop=stop, max_tokens=len(tokens), json=True)
    backend: Any = Scripted([*tokens, *tokens])
    assert run_generate(backend, tokenizer, options, out) == 0
    row = json.loads(out.getvalue())
    assert (row["text"], row["finish_reason"]) == (text, reason)


def test_special_tokens_are_matched_whole_and_never_shown() -> None:
    matcher = StopMatcher(["<a>b"], ["<a>", "<c>"])
    assert [matcher.add("x"), matcher.add_special("<a>"), matcher.add("c"), matcher.finish()] == ["x", "", "c", ""]
    matcher = StopMatcher(["<a>b", "<"], ["<a>", "<c>"])
    assert [matcher.add_special("<c>"), matcher.stopped] == ["", False]  # not by "<"
    assert [matcher.add_special("<a>"), matcher.add("b"), matcher.stopped] == ["", "", True]


def test_one_rule_for_escapes() -> None:
    assert unescaped(r"a\nb\tc\\d\x") == "a\nb\tc" + r"\\d\x"  # as mlx_lm.generate: no others


def test_the_rule_is_in_the_help_of_both_programs() -> None:
    for program in ("mtpd", "mtpd-onnx"):
        page = " ".join((Path(__file__).parents[1] / f"golden/help/{program}-generate.txt").read_text().split())
        assert page.count("\\n and \\t are line break and tab") == 2 and "special token" in page
