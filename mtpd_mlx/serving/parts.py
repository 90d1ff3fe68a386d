"""`Splitter`: an answer split as it comes into thoughts, text and calls of tools.
Called by the forms.

Which tags a model uses is read from its chat template: <think> (reasoning models) and <tool_call> with a JSON object inside
(Hermes, Qwen 2.5 and 3).
"""

import json
import secrets
from dataclasses import dataclass
from typing import Any

THINK, CALL = ("<think>", "</think>"), ("<tool_call>", "</tool_call>")


@dataclass(frozen=True)
class Kinds:
    """Tags that a model's template has, and whether the prompt ends inside its thoughts already."""

    thinks: bool = False
    calls: bool = False
    thinking: bool = False

    @classmethod
    def of(cls, template: str, prompt: str) -> "Kinds":
        thinks = THINK[0] in template
        return cls(thinks, CALL[0] in template and CALL[1] in template, thinks and prompt.rstrip().endswith(THINK[0]))


NOTHING_APART = Kinds()


@dataclass(frozen=True)
class Part:
    """kind: "text", "reasoning" or "call"; call: name and arguments (JSON text) of a whole call; start: characters of what the
    model said before it."""

    kind: str
    text: str = ""
    call: dict[str, str] | None = None
    start: int = 0

    @property
    def end(self) -> int:
        return self.start + len(self.text)


class Splitter:
    """Text that may be the beginning of a tag is held back; a call is given out whole. What is no valid call stays text."""

    def __init__(self, kinds: Kinds):
        self._opening = [*([THINK] if kinds.thinks else []), *([CALL] if kinds.calls else [])]
        self._inside: tuple[str, str] | None = THINK if kinds.thinking else None
        self._held, self._bare = "", kinds.thinking  # bare: nothing but white space since a tag
        self._at = 0  # where `_held` begins in all that was said

    def add(self, text: str) -> list[Part]:
        self._held += text
        parts: list[Part] = []
        while (part := self._next()) is not None:
            parts += part
        return parts

    def finish(self) -> list[Part]:
        """What was held back when the text ended; a whole call without its closing tag, which may have ended it, is one."""
        held, self._held = self._held, ""
        if self._inside == CALL:
            call = call_of(held, self._at)
            return [call if call.call else Part("text", CALL[0] + held, start=self._at - len(CALL[0]))]
        return self._said(held)

    def _next(self) -> list[Part] | None:
        """The parts up to the next tag, or all that is certain; None where nothing more is."""
        tags = [self._inside[1]] if self._inside else [opening for opening, _ in self._opening]
        found = min(((i, tag) for tag in tags if (i := self._held.find(tag)) >= 0), default=None)
        if found is not None:
            before, tag = self._held[: found[0]], found[1]
            self._held = self._held[found[0] + len(tag) :]
            said = [call_of(before, self._at)] if self._inside == CALL else self._said(before)
            self._at += found[0] + len(tag)
            self._inside = None if self._inside else next(pair for pair in self._opening if pair[0] == tag)
            self._bare = self._inside is None or self._inside == THINK
            return said
        if self._inside == CALL:
            return None
        keep = max((overlap(self._held, tag) for tag in tags), default=0)
        certain, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        said = self._said(certain)
        self._at += len(certain)
        return said or None

    def _said(self, text: str) -> list[Part]:
        """`text` stands at `_at`. White space around tags is theirs."""
        said = text.lstrip() if self._bare else text
        if not said:
            return []
        self._bare = False
        start = self._at + len(text) - len(said)
        return [Part("reasoning" if self._inside == THINK else "text", said, start=start)]


def call_of(text: str, at: int) -> Part:
    """Of what stands at `at` between the tags."""
    try:
        said = json.loads(text)
        name, arguments = said["name"], said.get("arguments", {})
        if not isinstance(name, str) or not isinstance(arguments, dict):
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError):
        return Part("text", CALL[0] + text + CALL[1], start=at - len(CALL[0]))
    return Part("call", call={"name": name, "arguments": json.dumps(arguments, ensure_ascii=False)}, start=at)


def overlap(text: str, tag: str) -> int:
    """Length of the longest proper beginning of `tag` that `text` ends with."""
    return next((n for n in range(min(len(tag) - 1, len(text)), 0, -1) if text.endswith(tag[:n])), 0)


def tool_call(index: int, call: dict[str, str]) -> dict[str, Any]:
    """In OpenAI's form."""
    return {"index": index, "id": "call_" + secrets.token_hex(12), "type": "function", "function": call}
