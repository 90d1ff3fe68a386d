"""Grammars over a real tokenizer form: what they allow, what is forced, what is refused in one line."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny import VOCAB, write_tokenizer

from mtpd_mlx.text import grammar as module
from mtpd_mlx.text.grammar import Grammar, Grammars, schema_grammar, schema_of_file
from mtpd_mlx.text.tokenizer import Tokenizer

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"], "additionalProperties": False}
TOOLS = [{"type": "function", "function": {"name": "w", "parameters": CITY}}, {"type": "function", "function": {"name": "t"}}]
CALL = '<tool_call>\n{"name": "w", "arguments": {"city": "Oslo"}}\n</tool_call>'
CALLS = json.dumps(TOOLS)
JSON = '{"city":"x"}'


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Grammars]:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    tokenizer = Tokenizer.from_folder(folder)
    return tokenizer, Grammars(tokenizer, VOCAB)


def accepts(known: tuple[Tokenizer, Grammars], grammar: Grammar, text: str) -> bool:
    """Token by token, and the end of the text after them."""
    tokenizer, grammars = known
    constraint = grammars.constraint(grammar)
    for token in tokenizer.encode(text):
        mask = constraint.allowed()
        assert mask.shape == (VOCAB,)
        if not constraint.take(token):
            assert not mask[token]
            return False
        assert mask[token]
    return bool(constraint.allowed()[0])


def with_thoughts(inside: bool) -> Grammar:
    return Grammar("json_schema", json.dumps(CITY), inside)


CASES: list[tuple[Grammar, list[str], list[str]]] = [
    (
        schema_grammar(CITY),
        [JSON, '{\n  "city" : "a b" }'],
        ["hi", "{}", '{"city":1}', '{"city":"x"', "{" + " " * 30 + JSON[1:]],
    ),
    (Grammar("json_object"), ["{}", '{"a": [1, null]}'], ["[]", "1"]),
    (Grammar("regex", r"\d{3}"), ["123"], ["12", "1234"]),
    (Grammar("choice", '["yes", "no.", "a|b"]'), ["yes", "no.", "a|b"], ["nob", "a", ""]),
    (Grammar("grammar", 'start: "a" | "b"'), ["a", "b"], ["c"]),
    (Grammar("grammar", 'root ::= "a" | "b"'), ["a", "b"], ["c"]),
    (
        with_thoughts(False),
        [JSON, f"<think>so {{</think>{JSON}", f"<think></think>\n\n{JSON}"],
        ["<think>so", "so </think>" + JSON],
    ),
    (with_thoughts(True), [f"so </think>\n{JSON}"], [JSON]),
    (Grammar("calls", calls=CALLS), [CALL, f"{CALL}\n{CALL}"], ["hi", CALL.replace("city", "town"), f"{CALL} and"]),
    (Grammar("calls", calls=CALLS, several=False), [CALL], [f"{CALL}\n{CALL}"]),
    (Grammar("text", calls=CALLS), [CALL, "hello", f"I call {CALL} and {CALL}", ""], ["x <tool_call> y", CALL[:30]]),
    (Grammar("json_schema", json.dumps(CITY), calls=CALLS), [CALL, JSON], ["hi"]),
]


@pytest.mark.parametrize(("grammar", "right", "wrong"), CASES)
def test_what_a_grammar_allows(known: Any, grammar: Grammar, right: list[str], wrong: list[str]) -> None:
    for text in right:
        assert accepts(known, grammar, text), text
    for text in wrong:
        assert not accepts(known, grammar, text), text


def test_tokens_are_taken_back(known: tuple[Tokenizer, Grammars]) -> None:
    tokenizer, grammars = known
    constraint, other = (grammars.constraint(schema_grammar(CITY)) for _ in range(2))
    text = tokenizer.encode(JSON)
    for token in text:
        assert constraint.take(token)
    constraint.back(len(text) - 4)
    for token in text[:4]:
        other.take(token)
    assert (constraint.allowed() == other.allowed()).all()
    assert not constraint.take(text[0]) and (constraint.allowed() == other.allowed()).all()


def test_forced_tokens_are_the_only_ones(known: tuple[Tokenizer, Grammars]) -> None:
    tokenizer, grammars = known
    constraint = grammars.constraint(Grammar("calls", calls=json.dumps(TOOLS[:1]), several=False))
    forced = constraint.forced()
    assert tokenizer.decode(forced).startswith('<tool_call>\n{"name": "w", "arguments": {')
    for token in forced:
        assert constraint.allowed().nonzero()[0].tolist() == [token]
        assert constraint.take(token)


REFUSED = [
    (Grammar("json_schema", "{"), "JSON schema: not valid JSON"),
    (Grammar("json_schema", "[]"), "JSON schema: got list, expected an object"),
    (schema_grammar({"unevaluatedProperties": False}), 'json_schema: Unimplemented keys: ["unevaluatedProperties"]'),
    (schema_grammar({"type": "string", "pattern": "^a(?=b)"}), "look-around"),
    (Grammar("regex", "(ab"), "unclosed group"),
    (Grammar("grammar", "start: foo"), 'unknown name: "foo"'),
    (Grammar("prose"), "got the kind 'prose'"),
]


@pytest.mark.parametrize(("grammar", "message"), REFUSED)
def test_what_is_no_grammar_is_refused_in_one_line(known: tuple[Tokenizer, Grammars], grammar: Grammar, message: str) -> None:
    with pytest.raises(ValueError) as error:
        known[1].constraint(grammar)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_files(tmp_path: Path) -> None:
    file = tmp_path / "schema.json"
    file.write_text(json.dumps(CITY))
    assert schema_of_file(file) == schema_grammar(CITY)
    for content, message in ((b"{", "not valid JSON"), (b"\xff\xfe", "not UTF-8"), (b"3", "got int")):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            schema_of_file(file)
    with pytest.raises(ValueError, match="No such file"):
        schema_of_file(tmp_path / "none")


def test_without_the_package_one_line_says_so(known: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="llguidance is not installed: pip install"):
        known[1].constraint(Grammar("json_object"))
