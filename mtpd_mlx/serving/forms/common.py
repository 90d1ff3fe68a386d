"""`Served`, `Reply` and the readers that all forms share.
Called by the forms and serving/app.py."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol

from mtpd_mlx.options.serve import ServeOptions
from mtpd_mlx.serving.engine import Finished, Progress, Request
from mtpd_mlx.serving.errors import ApiError, invalid, unsupported
from mtpd_mlx.serving.fields import Fields
from mtpd_mlx.serving.parts import Kinds
from mtpd_mlx.speculative.sampling import Sampling
from mtpd_mlx.text.grammar import Grammars
from mtpd_mlx.text.tokenizer import Tokenizer

MAX_STOPS = 16
TEXTS = ("text", "input_text", "output_text")  # types of parts that are text
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}


@dataclass(frozen=True)
class Served:
    """What a request is read against: the models' names (the first is said), and defaults of the command line. vocabulary: the
    model's logits (None: as many as the tokenizer has tokens). most_texts: that one request may ask for."""

    names: tuple[str, ...]
    tokenizer: Tokenizer
    capacity: int
    sampling: Sampling
    max_tokens: int
    vocabulary: int | None = None
    most_texts: int = ServeOptions.max_waiting

    @property
    def logits(self) -> int:
        """How many the model gives."""
        return self.vocabulary or self.tokenizer.vocab_size

    @cached_property
    def grammars(self) -> Grammars:
        return Grammars(self.tokenizer, self.logits)

    @cached_property
    def longest_text(self) -> int:
        """Characters that a prompt may have at most, if each of its tokens is the longest one."""
        return self.capacity * self.tokenizer.longest_token

    def encode(self, text: str, param: str, add_special_tokens: bool = True) -> list[int]:
        """The tokens. What is too long however it is cut is refused before that takes memory."""
        if len(text) > self.longest_text:
            raise too_long(self, param, f"{len(text)} characters")
        return self.tokenizer.encode(text, add_special_tokens)


@dataclass
class Said:
    """One text of an answer so far."""

    progress: list[Progress] = field(default_factory=list)
    finished: Finished | None = None

    @property
    def all(self) -> Progress:
        pieces = [piece for each in self.progress for piece in each.pieces]
        scores = [score for each in self.progress for score in each.scores]
        return Progress(pieces, scores, [score for each in self.progress for score in each.prompt])

    @property
    def end(self) -> Finished:
        """Of a text that has ended."""
        assert self.finished is not None
        return self.finished


class Reply(Protocol):
    """An answer under way in one form; `index`: which of its texts. The iterators are server-sent events, in the order of the
    methods: piece and end come for every text."""

    def total(self, said: Sequence[Said]) -> Finished:
        """Counts and times of all texts together."""
        ...

    def whole(self, said: Sequence[Said]) -> dict[str, Any]: ...

    def begin(self) -> Iterator[str]: ...

    def piece(self, index: int, progress: Progress) -> Iterator[str]: ...

    def end(self, index: int, finished: Finished) -> Iterator[str]: ...

    def close(self, said: Sequence[Said]) -> Iterator[str]:
        """All have ended."""
        ...

    def failed(self, error: ApiError) -> Iterator[str]: ...


def read_model(fields: Fields, served: Served) -> None:
    name = fields.text("model")
    if name is not None and name not in served.names:
        raise no_model(name, served)


def no_model(name: str, served: Served) -> ApiError:
    said = f"model: got {name[:60]!r}, this server has {served.names[0]!r}"
    return ApiError(404, said, param="model", code="model_not_found")


def read_list(fields: Fields, name: str) -> list[Any]:
    value = fields.raw(name)
    if not isinstance(value, list) or not value:
        raise invalid(name, value, "a list of at least one")
    return value


def read_message(value: Any, where: str) -> dict[str, str]:
    """{"role", "content"} with text alone, as chat templates take it."""
    if not isinstance(value, dict):
        raise invalid(where, value, "an object with role and content")
    role = value.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise invalid(f"{where}.role", role, f"one of {', '.join(ROLES)}")
    for name in ("tool_calls", "function_call", "audio"):
        if value.get(name):
            raise unsupported(f"{where}.{name}")
    return {"role": ROLES[role], "content": read_text(value.get("content"), f"{where}.content")}


def read_text(content: Any, where: str) -> str:
    """A text, or a list of parts that are text, joined."""
    if isinstance(content, list):
        content = "".join(_part(part, f"{where}[{i}]") for i, part in enumerate(content))
    if not isinstance(content, str):
        raise invalid(where, content, "text")
    return content


def _part(part: Any, where: str) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind in TEXTS and isinstance(part.get("text"), str):
        return str(part["text"])
    if isinstance(kind, str) and kind not in TEXTS:
        raise unsupported(f"{where}.type", f"got {kind[:40]!r}, this server reads text alone")
    raise invalid(where, part, 'an object like {"type": "text", "text": ...}')


def encode_chat(
    messages: list[dict[str, Any]], served: Served, param: str, tools: list[dict[str, Any]] | None = None
) -> tuple[list[int], Kinds]:
    """The prompt's tokens, and what the answer may be taken apart into."""
    tokenizer = served.tokenizer
    try:
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tools=tools)
        kinds = Kinds.of(tokenizer.template(tools), text)
        return served.encode(text, param, add_special_tokens=False), replace(kinds, calls=kinds.calls and tools is not None)
    except ValueError as error:
        raise ApiError(400, f"{param}: {error}", param=param, code="invalid_value") from error


def read_stops(fields: Fields, name: str) -> tuple[str, ...]:
    value = fields.raw(name)
    texts = [value] if isinstance(value, str) else value if value is not None else []
    if not isinstance(texts, list) or len(texts) > MAX_STOPS or not all(isinstance(t, str) and t for t in texts):
        raise invalid(name, value, f"a text, or a list of at most {MAX_STOPS} texts")
    return tuple(texts)


def read_sampling(fields: Fields, default: Sampling) -> Sampling:
    """1 switches top_p off in these APIs and 0 here. At temperature 0 what cuts the distribution has no effect."""
    temp = fields.number("temperature", default.temp, 0, 100)
    top_p = fields.number("top_p", default.top_p, 0, 1)
    min_p, top_k = fields.number("min_p", default.min_p, 0, 1), fields.integer("top_k", default.top_k, 0)
    penalty = fields.number("repetition_penalty", default.repetition_penalty, 0.01, 100)
    seed = fields.integer("seed", default.seed, 0)
    if temp == 0:
        return Sampling(repetition_penalty=penalty, seed=seed)
    top_p = 0.0 if top_p == 1 else top_p
    return Sampling(temp=temp, top_p=top_p, min_p=min_p, top_k=top_k or 0, repetition_penalty=penalty, seed=seed)


def made(fields: Fields, served: Served, param: str, requests: list[Request]) -> list[Request]:
    """`requests`, once nothing of the body is left unread and their prompts are known to fit. `param`: where these were."""
    fields.done()
    for request in requests:
        if not request.prompt:
            raise invalid(param, "", "at least one token of text")
        if len(request.prompt) >= served.capacity:
            raise too_long(served, param, str(len(request.prompt)))
    return requests


def too_long(served: Served, param: str, has: str) -> ApiError:
    message = f"This model's maximum context length is {served.capacity} tokens, and your {param} has {has}."
    return ApiError(400, message, param=param, code="context_length_exceeded")
