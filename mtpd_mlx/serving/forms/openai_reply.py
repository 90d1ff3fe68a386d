"""`OpenAIReply`: objects and chunks of the answers of /v1/chat/completions and /v1/completions.
Made by openai.py."""

import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from mtpd_mlx.serving.engine import Finished, Progress
from mtpd_mlx.serving.errors import ApiError
from mtpd_mlx.serving.events import event
from mtpd_mlx.serving.forms.choices import ONE, Choices
from mtpd_mlx.serving.forms.common import Said
from mtpd_mlx.serving.forms.logprobs import Scores
from mtpd_mlx.serving.jobs import joined
from mtpd_mlx.serving.parts import NOTHING_APART, Kinds, Part, Splitter, tool_call
from mtpd_mlx.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Told:
    """What an answer says besides its text. usage: in the last chunk of a stream; drafts: mtpd_drafts; echo: the prompts, to
    be said before their texts (text, and the tokens); logprobs: those of which tokenizer's tokens, None: none are."""

    usage: bool = False
    drafts: bool = False
    echo: tuple[tuple[str, list[int]], ...] = ()
    logprobs: Tokenizer | None = None


class ChatChoice:
    """One text under way, as deltas of a message."""

    name = "message"

    def __init__(self, kinds: Kinds, told: Told):
        self.calls = 0
        self._splitter = Splitter(kinds)
        self._scores = None if told.logprobs is None else Scores(told.logprobs)

    def deltas(self, progress: Progress, finished: Finished | None) -> list[dict[str, Any]]:
        """What the new text adds to a choice: {"delta", "logprobs"}."""
        if self._scores is not None:
            self._scores.add(progress.scores)
        parts = self._splitter.add(progress.text) + (self._splitter.finish() if finished is not None else [])
        return [{"delta": self._delta(part), "logprobs": self._logprobs(part)} for part in parts]

    def whole(self, said: Said) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": None}
        content: list[dict[str, Any]] = []
        for each in self.deltas(said.all, said.end):
            content += (each["logprobs"] or {}).get("content", [])
            for name, value in each["delta"].items():
                message[name] = value if message.get(name) is None else message[name] + value
        if not self.calls:
            message["content"] = message["content"] or ""
        return {"message": message, "logprobs": None if self._scores is None else of_content(content)}

    def empty(self) -> dict[str, Any]:
        return {"delta": {}}

    def _logprobs(self, part: Part) -> dict[str, Any] | None:
        """Of the message's content: thoughts and calls have none."""
        if self._scores is None or part.kind != "text":
            return None
        return of_content(self._scores.content(part.start, part.end))

    def _delta(self, part: Part) -> dict[str, Any]:
        """Thoughts go out under the two names that clients look for."""
        if part.call is not None:
            self.calls += 1
            return {"tool_calls": [tool_call(self.calls - 1, part.call)]}
        if part.kind == "reasoning":
            return {"reasoning_content": part.text, "reasoning": part.text}
        return {"content": part.text}


def of_content(content: list[dict[str, Any]]) -> dict[str, Any]:
    return {"content": content, "refusal": None}


class TextChoice:
    """The same of a completion. `echo`: what is said before the text, and its tokens."""

    calls = 0

    def __init__(self, echo: tuple[str, list[int]], told: Told):
        self._echo, self._told, self._begun = echo, 0, False
        self._scores = None if told.logprobs is None else Scores(told.logprobs)

    def deltas(self, progress: Progress, finished: Finished | None) -> list[dict[str, Any]]:
        said = self._delta(progress, finished)
        return [said] if said["text"] or (said["logprobs"] or {}).get("tokens") else []

    def _delta(self, progress: Progress, finished: Finished | None) -> dict[str, Any]:
        before, tokens = ("", []) if self._begun else self._echo
        self._begun = True
        start, self._told = self._told, self._told + len(progress.text)
        logprobs = None
        if self._scores is not None:
            self._scores.add(progress.scores)
            whole = finished is not None and finished.stop_text is None  # the token that ends the text belongs to it
            logprobs = self._scores.completion(start, self._told + whole, len(self._echo[0]))
            if tokens:
                told = self._scores.prompt(tokens, progress.prompt)
                logprobs = {name: value + logprobs[name] for name, value in told.items()}
        return {"text": before + progress.text, "logprobs": logprobs}

    def whole(self, said: Said) -> dict[str, Any]:
        return self._delta(said.all, said.end)

    def empty(self) -> dict[str, Any]:
        return {"text": ""}


@dataclass
class OpenAIReply:
    """One answer under way, of a chat or of completions of `prompts` prompts, each of `choices` texts."""

    model: str
    chat: bool
    told: Told = Told()
    kinds: Kinds = NOTHING_APART
    choices: Choices = ONE
    prompts: int = 1
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        self.id = ("chatcmpl-" if self.chat else "cmpl-") + secrets.token_hex(12)
        self._texts = [self._choice(i) for i in range(self.prompts * self.choices.told)]

    def _choice(self, index: int) -> ChatChoice | TextChoice:
        if self.chat:
            return ChatChoice(self.kinds, self.told)
        return TextChoice(self.told.echo[index // self.choices.told] if self.told.echo else ("", []), self.told)

    def total(self, said: Sequence[Said]) -> Finished:
        return joined([each.end for each in said], self.choices.drawn)

    def whole(self, said: Sequence[Said]) -> dict[str, Any]:
        found = []
        for index, (text, each) in enumerate(zip(self._texts, self.choices.best(said), strict=True)):
            found.append(self._said(index, text.whole(each), self._reason(index, each.end)))
        kind = "chat.completion" if self.chat else "text_completion"
        return self._object(kind, found) | {"usage": usage(self.total(said))}

    def begin(self) -> Iterator[str]:
        for index in range(len(self._texts) if self.chat else 0):
            yield self._chunk(index, {"delta": {"role": "assistant", "content": ""}})

    def piece(self, index: int, progress: Progress) -> Iterator[str]:
        drafts: dict[str, Any] = {"mtpd_drafts": progress.pieces} if self.told.drafts else {}
        text = self._texts[index]
        said = text.deltas(progress, None)
        for each in said or ([text.empty()] if drafts else []):
            yield self._chunk(index, each, **drafts)
            drafts = {}

    def end(self, index: int, finished: Finished) -> Iterator[str]:
        text = self._texts[index]
        for each in text.deltas(Progress([]), finished):
            yield self._chunk(index, each)
        yield self._chunk(index, text.empty(), self._reason(index, finished))

    def close(self, said: Sequence[Said]) -> Iterator[str]:
        if self.told.usage:
            yield event(self._object(self._kind, []) | {"usage": usage(self.total(said))})
        yield event("[DONE]")

    def failed(self, error: ApiError) -> Iterator[str]:
        yield event(error.body())
        yield event("[DONE]")

    def _reason(self, index: int, finished: Finished) -> str:
        return "tool_calls" if self._texts[index].calls and finished.reason == "stop" else finished.reason

    @property
    def _kind(self) -> str:
        return "chat.completion.chunk" if self.chat else "text_completion"

    def _chunk(self, index: int, said: dict[str, Any], reason: str | None = None, **more: Any) -> str:
        return event(self._object(self._kind, [self._said(index, said, reason)]) | more)

    def _said(self, index: int, said: dict[str, Any], reason: str | None) -> dict[str, Any]:
        return {"index": index, "logprobs": None, "finish_reason": reason} | said

    def _object(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": choices}


def usage(finished: Finished) -> dict[str, Any]:
    """`mtpd`: tau, tokens per second and rounds by what they verified, beside OpenAI's counts."""
    prompt, written = finished.prompt_tokens, finished.stats.tokens
    return {
        "prompt_tokens": prompt,
        "completion_tokens": written,
        "total_tokens": prompt + written,
        "prompt_tokens_details": {"cached_tokens": finished.cached_tokens},
        "mtpd": finished.figures(),
    }
