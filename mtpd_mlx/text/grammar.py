"""`Grammar`, `Grammars`: JSON schemas, regular expressions and grammars as masks over a model's vocabulary.
Called by the servers and `generate`.

`Grammar` is what users ask for. `Grammars` makes a Constraint (speculative/constrained.py) of one, by llguidance, for one
tokenizer.
"""

import json
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from mtpd_mlx.text.tokenizer import Tokenizer

KINDS = ("json_schema", "json_object", "regex", "choice", "grammar", "calls", "text")
NEEDED = 'llguidance is not installed: pip install -e ".[serve]"'
# White space between the parts of a JSON text. Without a limit a model may write nothing else.
JSON_OPTIONS = {"whitespace_pattern": r"[ \n\t]{1,24}"}
THOUGHTS = {None: "", False: '("<think>" thoughts GAP?)? ', True: "thoughts GAP? "}
ANYTHING = "/(.|\\n)*/"


@dataclass(frozen=True)
class Grammar:
    """kind: one of KINDS; text: the schema as JSON, the expression, the JSON list of texts to choose from, or a grammar
    (llguidance's Lark dialect, or GBNF). Of kind "calls" a text is nothing but calls of tools, of kind "text" anything.

    thoughts: what may stand before the answer: None nothing, False thoughts between <think> and </think>, True the rest of
    thoughts that the prompt began. calls: the descriptions of tools as JSON, a call of which may stand in place of the answer,
    or (kind "text") anywhere in it. several: more than one call may follow."""

    kind: str
    text: str = ""
    thoughts: bool | None = None
    calls: str = ""
    several: bool = True

    def source(self) -> str:
        """As llguidance takes it. ValueError where `text` is not of the kind's form."""
        if self.thoughts is None and not self.calls:
            return self._answer()
        body = {"calls": "calls", "text": "(until_call call)* ANYTHING"}.get(self.kind, "@answer")
        if self.calls and self.kind not in ("calls", "text"):
            body = "(calls | @answer)"
        rules = [f"start: {THOUGHTS[self.thoughts]}{body}", f"ANYTHING: {ANYTHING}"]
        rules += [f'thoughts[suffix="</think>"]: {ANYTHING}', "GAP: /\\n{1,2}/"] if self.thoughts is not None else []
        rules += call_rules(json.loads(self.calls), self.several) if self.calls else []
        whole = [{"name": "whole", "lark_grammar": "\n".join(rules)}]
        if "@answer" in body:
            first, *others = json.loads(self._answer())["grammars"]
            whole += [first | {"name": "answer"}, *others]
        return json.dumps({"grammars": whole})

    def _answer(self) -> str:
        from llguidance import LLMatcher
        from llguidance.gbnf_to_lark import any_to_lark

        if self.kind in ("json_schema", "json_object"):
            schema = _object(self.text) if self.kind == "json_schema" else {"type": "object"}
            return LLMatcher.grammar_from_json_schema(schema, overrides=JSON_OPTIONS)  # type: ignore[arg-type]
        if self.kind == "regex":
            return LLMatcher.grammar_from_regex(self.text)
        if self.kind == "choice":
            return LLMatcher.grammar_from_regex("|".join(re.escape(each) for each in json.loads(self.text)))
        if self.kind == "grammar":
            return LLMatcher.grammar_from_lark(any_to_lark(self.text))
        raise ValueError(f"grammar: got the kind {self.kind!r}, expected one of {', '.join(KINDS)}")


def call_rules(tools: list[dict[str, Any]], several: bool) -> list[str]:
    """Lark rules `calls` and, behind text that ends with <tool_call>, `until_call call`."""
    names = [f"call_{i}" for i in range(len(tools))]
    more = ' ("\\n<tool_call>" call)*' if several else ""
    rules = [f'calls: "<tool_call>" call{more}', f"call: {' | '.join(names)}", 'until_call[lazy]: ANYTHING "<tool_call>"']
    for name, tool in zip(names, tools, strict=True):
        function = tool["function"]
        schema = (function.get("parameters") or {"type": "object"}) | {"x-guidance": JSON_OPTIONS}
        begin = f'\n{{"name": {json.dumps(function["name"])}, "arguments": '
        rules.append(f"{name}: {json.dumps(begin)} %json {json.dumps(schema)} {json.dumps('}' + chr(10) + '</tool_call>')}")
    return rules


def schema_grammar(schema: Mapping[str, Any], thoughts: bool | None = None) -> Grammar:
    """The grammar of texts that are JSON of the schema; `thoughts`: whether thoughts may stand before."""
    return Grammar("json_schema", json.dumps(schema), thoughts)


def schema_of_file(file: Path) -> Grammar:
    """ValueError in one line where `file` holds no JSON schema."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: {getattr(error, 'strerror', None) or 'not UTF-8 text'}") from error
    try:
        return schema_grammar(_object(text))
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


class Grammars:
    """Of one tokenizer and a model of `vocab_size` logits. llguidance's own view of the tokenizer is made when the first
    constraint is; any thread may ask."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int):
        self._tokenizer, self._vocab_size = tokenizer, vocab_size
        self._made: Any = None
        self._lock = threading.Lock()

    def constraint(self, grammar: Grammar) -> "Matcher":
        """One text's, at its beginning. ValueError in one line where `grammar` is none, or asks for what llguidance cannot hold
        a text to, or llguidance is missing."""
        if find_spec("llguidance") is None:
            raise ValueError(NEEDED)
        from llguidance import LLMatcher

        matcher = LLMatcher(self._llguidance(), grammar.source(), log_level=0)
        if matcher.is_error():
            raise ValueError(f"{grammar.kind}: {_one_line(matcher.get_error())}")
        return Matcher(matcher, self._tokenizer.eos_token_ids, self._vocab_size)

    def _llguidance(self) -> Any:
        from llguidance import LLTokenizer

        own = self._tokenizer
        if not own.eos_token_ids:
            raise ValueError("grammar: the tokenizer names no token that ends a text")
        with self._lock:
            if self._made is None:
                size, text = max(self._vocab_size, own.vocab_size), own.to_json()
                decoder = json.loads(text).get("decoder") or {"type": "Fuse"}
                source = WholeTokens(own, size) if decoder["type"] == "Fuse" else text
                self._made = LLTokenizer(source, n_vocab=size, eos_token=sorted(own.eos_token_ids))  # type: ignore[arg-type]
        return self._made


class WholeTokens:
    """A tokenizer whose texts are its tokens' one after the other, as llguidance takes it (that reads byte-level tokenizers and
    those with byte fallback by itself)."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, size: int):
        self.eos_token_id = min(tokenizer.eos_token_ids)
        self.special_token_ids = sorted(tokenizer.special_tokens())
        self.tokens = [tokenizer.decode([i], skip_special_tokens=False).encode() for i in range(size)]
        self._tokenizer = tokenizer

    def __call__(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False)


class Matcher:
    """A Constraint by llguidance."""

    def __init__(self, matcher: Any, ends: frozenset[int], vocab_size: int):
        self.ends = ends
        self._matcher, self._vocab_size = matcher, vocab_size

    def allowed(self) -> np.ndarray:
        bits = np.unpackbits(np.frombuffer(self._matcher.compute_bitmask(), np.uint8), bitorder="little")
        self._check()
        out: np.ndarray = bits[: self._vocab_size].astype(bool)
        return out

    def forced(self) -> list[int]:
        return list(self._matcher.compute_ff_tokens())

    def take(self, token: int) -> bool:
        taken: bool = self._matcher.try_consume_tokens([token]) == 1
        self._check()
        return taken

    def back(self, count: int) -> None:
        if count and not self._matcher.rollback(count):
            self._check()

    def _check(self) -> None:
        """ValueError where the grammar went beyond llguidance's limits."""
        if self._matcher.is_error():
            raise ValueError(f"grammar: {_one_line(self._matcher.get_error())}")


def _object(text: str) -> dict[str, Any]:
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"JSON schema: not valid JSON ({str(error).splitlines()[0]})") from error
    if not isinstance(schema, dict):
        raise ValueError(f"JSON schema: got {type(schema).__name__}, expected an object")
    return schema


def _one_line(message: str) -> str:
    """The first line that says what is wrong; that of a regular expression is the last of its report."""
    lines = [line.strip() for line in message.splitlines() if line.strip()] or ["not understood"]
    found = next((line for line in lines if line.startswith("error:")), None)
    return (lines[0] if found is None else f"{lines[0].rstrip(':')}: {found.removeprefix('error:').strip()}")[:300]
