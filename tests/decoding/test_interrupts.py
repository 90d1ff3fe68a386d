"""Ctrl-C between any two lines of decoding: the text that the decoder holds goes on as if nothing had happened, or is gone."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from helpers.schedule import Schedule

from mtpd_mlx.decoding.choosing import ChoosingDecoder
from mtpd_mlx.decoding.open import open_decoder
from mtpd_mlx.decoding.text_state import Model
from mtpd_mlx.decoding.token_rules import Greedy
from mtpd_mlx.model.load_save import load_for_decoding
from mtpd_mlx.options.decode import DecodingConfig
from mtpd_mlx.speculative.loop import generate

PROMPT, MORE, LENGTH = [5, 6, 7, 8, 9, 10, 11, 12], [3, 4, 5], 24
PLACES = ("mtpd_mlx/decoding/", "mtpd_mlx/speculative/loop.py")


@contextmanager
def stopped_at(line: int) -> Iterator[list[int]]:
    """KeyboardInterrupt in place of the line-th line that decoding runs; gives how many it ran, in a list."""
    count = [0]

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        if not any(place in frame.f_code.co_filename for place in PLACES) or "/tuning/" in frame.f_code.co_filename:
            return None
        if frame.f_code.co_name in ("_or_as_before", "_forget", "clear", "length", "has_caches"):  # what Ctrl-C is handled by
            return None
        if event == "line":
            count[0] += 1
            if count[0] == line:
                sys.settrace(None)
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield count
    finally:
        sys.settrace(before)


def written(decoder: Any, prompt: list[int], max_tokens: int = LENGTH) -> list[int]:
    tokens: list[int] = []
    for chunk in generate(decoder, prompt, max_tokens=max_tokens):
        tokens += chunk.tokens
    return tokens


def as_chat_does(decoder: Any, said: list[int], length: int) -> list[int]:
    """What Chat.answer makes of a text that was interrupted: the cache as far as it goes, then what is new."""
    cached = said[: decoder.length]
    whole = [*said, *MORE]
    decoder.rewind_to(min(len(cached), len(whole) - 1))
    return written(decoder, whole[decoder.length :], length)


CASES = [("growing", 2), ("fixed", 2), ("growing", 0), ("fixed", 0), ("chosen", 3)]


@pytest.mark.parametrize(("plan", "drafts"), CASES)
def test_an_interrupted_text_goes_on(plan: str, drafts: int, tiny_checkpoint: Path) -> None:
    base, heads, _ = load_for_decoding(tiny_checkpoint, dequantize=True)

    def opened() -> Any:
        if plan == "chosen":
            return ChoosingDecoder(Model(base, heads, drafts, Greedy()), Schedule(1, most=drafts))
        return open_decoder(base, heads if drafts else None, DecodingConfig(plan=plan), num_draft_tokens=drafts)

    decoder = opened()
    with stopped_at(-1) as count:
        written(decoder, PROMPT)
    lines, kept = count[0], 0
    for line in range(1, lines, max(1, lines // 30)):
        decoder, said = opened(), list(PROMPT)
        with stopped_at(line):
            try:
                for chunk in generate(decoder, PROMPT, max_tokens=LENGTH):
                    said += chunk.tokens
            except KeyboardInterrupt:
                pass
            else:
                continue
        kept += decoder.length > len(PROMPT)
        expected = written(opened(), [*said, *MORE], 12)
        assert as_chat_does(decoder, said, 12) == expected, line
    assert kept > 5  # most of the time the cache is not lost
