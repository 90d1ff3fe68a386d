"""Thoughts and calls of tools, taken apart however the text comes in pieces."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtpd_mlx.serving.forms.common import Said
from mtpd_mlx.serving.forms.openai_reply import OpenAIReply
from mtpd_mlx.serving.jobs import Finished, Progress
from mtpd_mlx.serving.parts import Kinds, Part, Splitter
from mtpd_mlx.speculative.stats import DecodeStats

BOTH = Kinds(thinks=True, calls=True)
CALL = '<tool_call>\n{"name": "f", "arguments": {"x": [1, "</b>"]}}\n</tool_call>'
CASES: list[tuple[Kinds, str, list[tuple[str, str]]]] = [
    (BOTH, "plain < text", [("text", "plain < text")]),
    (BOTH, "<think>\nwhy\n</think>\n\nbecause", [("reasoning", "why\n"), ("text", "because")]),
    (Kinds(thinks=True, thinking=True), "\nwhy</think>so", [("reasoning", "why"), ("text", "so")]),
    (BOTH, f"I ask.\n{CALL}", [("text", "I ask.\n"), ("call", '{"x": [1, "</b>"]}')]),
    (BOTH, f"{CALL}\n{CALL}", [("call", '{"x": [1, "</b>"]}')] * 2),
    (BOTH, "<tool_call>{not json}</tool_call>.", [("text", "<tool_call>{not json}</tool_call>.")]),
    (BOTH, '<tool_call>{"name": 3}</tool_call>', [("text", '<tool_call>{"name": 3}</tool_call>')]),
    (BOTH, "<tool_call>{", [("text", "<tool_call>{")]),
    (BOTH, "<think>unfinished", [("reasoning", "unfinished")]),
    (BOTH, "a <thi", [("text", "a <thi")]),
    (Kinds(), f"<think>x</think>{CALL}", [("text", f"<think>x</think>{CALL}")]),
    (Kinds(thinks=True), CALL, [("text", CALL)]),
]


def joined(parts: list[Part]) -> list[tuple[str, str]]:
    """Neighbours of one kind as one."""
    found: list[tuple[str, str]] = []
    for part in parts:
        if part.call is not None:
            assert part.call["name"] == "f"
            found.append(("call", part.call["arguments"]))
        elif found and found[-1][0] == part.kind:
            found[-1] = (part.kind, found[-1][1] + part.text)
        else:
            found.append((part.kind, part.text))
    return found


@pytest.mark.parametrize(("kinds", "text", "expected"), CASES)
def test_whatever_the_pieces(kinds: Kinds, text: str, expected: list[tuple[str, str]]) -> None:
    for size in range(1, len(text) + 1):
        splitter, parts = Splitter(kinds), list[Part]()
        for start in range(0, len(text), size):
            parts += splitter.add(text[start : start + size])
        assert joined(parts + splitter.finish()) == expected


SCRAPS = ["<think>", "</think>", "<tool_call>", "</tool_call>", "<", "{}", " a", CALL]


@given(st.lists(st.sampled_from(SCRAPS), max_size=8), st.integers(0, 99))
def test_how_a_text_is_cut_does_not_matter(texts: list[str], seed: int) -> None:
    text, rng = "".join(texts), np.random.default_rng(seed)
    whole = Splitter(BOTH)
    expected = joined(whole.add(text) + whole.finish())
    splitter, parts, rest = Splitter(BOTH), list[Part](), text
    while rest:
        n = int(rng.integers(1, 5))
        parts, rest = parts + splitter.add(rest[:n]), rest[n:]
    assert joined(parts + splitter.finish()) == expected


def reply() -> OpenAIReply:
    return OpenAIReply("tiny", True, kinds=BOTH)


def test_calls_in_the_form_of_openai() -> None:
    text, done = f"<think>why</think>I ask. {CALL}", Finished("stop", None, 1, 0, DecodeStats(2), 0.1, 0.2)
    whole = reply().whole([Said([Progress([(text, False)])], done)])["choices"][0]
    message = whole["message"]
    assert whole["finish_reason"] == "tool_calls" and message["content"] == "I ask. "
    assert message["reasoning_content"] == message["reasoning"] == "why"
    (call,) = message["tool_calls"]
    assert call["type"] == "function" and call["function"] == {"name": "f", "arguments": '{"x": [1, "</b>"]}'}
    streamed, deltas = reply(), []
    for start in range(0, len(text), 3):
        deltas += [json.loads(e[6:])["choices"][0] for e in streamed.piece(0, Progress([(text[start : start + 3], False)]))]
    deltas += [json.loads(e[6:])["choices"][0] for e in streamed.end(0, done)]
    assert "".join(d["delta"].get("content", "") for d in deltas) == "I ask. "
    assert [d["delta"]["tool_calls"][0]["function"]["name"] for d in deltas if "tool_calls" in d["delta"]] == ["f"]
    assert deltas[-1]["finish_reason"] == "tool_calls"
