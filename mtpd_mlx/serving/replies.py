"""OpenAI's objects: whole answers, chunks of a stream, usage, models."""

import json
import secrets
import time
from dataclasses import dataclass, field
from typing import Any

from mtpd_mlx.serving.answer import Piece
from mtpd_mlx.serving.engine import Finished


@dataclass
class Reply:
    """One answer under way, of a chat or of a completion."""

    model: str
    chat: bool
    created: int = field(default_factory=lambda: int(time.time()))
    id: str = ""

    def __post_init__(self) -> None:
        self.id = ("chatcmpl-" if self.chat else "cmpl-") + secrets.token_hex(12)

    def whole(self, text: str, finished: Finished) -> dict[str, Any]:
        said: dict[str, Any] = {"message": {"role": "assistant", "content": text}} if self.chat else {"text": text}
        kind = "chat.completion" if self.chat else "text_completion"
        return self._object(kind, said, finished.reason) | {"usage": usage(finished)}

    def first(self) -> dict[str, Any] | None:
        """What begins a stream of a chat."""
        return self._chunk({"delta": {"role": "assistant", "content": ""}}) if self.chat else None

    def piece(self, pieces: list[Piece], show_drafts: bool) -> dict[str, Any]:
        text = "".join(piece for piece, _ in pieces)
        chunk = self._chunk({"delta": {"content": text}} if self.chat else {"text": text})
        return chunk | ({"mtpd_drafts": pieces} if show_drafts else {})

    def last(self, finished: Finished) -> dict[str, Any]:
        return self._chunk({"delta": {}} if self.chat else {"text": ""}, finished.reason)

    def usage(self, finished: Finished) -> dict[str, Any]:
        """The chunk after the last one, where usage was asked for."""
        return self._chunk({}) | {"choices": [], "usage": usage(finished)}

    def _chunk(self, said: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
        return self._object("chat.completion.chunk" if self.chat else "text_completion", said, reason)

    def _object(self, kind: str, said: dict[str, Any], reason: str | None) -> dict[str, Any]:
        choice = {"index": 0, "logprobs": None, "finish_reason": reason} | said
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": [choice]}


def usage(finished: Finished) -> dict[str, Any]:
    """`mtpd`: tau, tokens per second and rounds by what they verified, beside OpenAI's counts."""
    prompt, written, stats = finished.prompt_tokens, finished.stats.tokens, finished.stats
    return {
        "prompt_tokens": prompt,
        "completion_tokens": written,
        "total_tokens": prompt + written,
        "prompt_tokens_details": {"cached_tokens": finished.cached_tokens},
        "mtpd": {
            "tau": round(stats.tau, 3),
            "tokens_per_second": round(stats.tokens_per_second, 1),
            "seconds_to_first_token": round(finished.seconds_to_first, 3),
            "rounds": stats.chosen,
        },
    }


def model_card(name: str, created: int, info: dict[str, Any]) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": created, "owned_by": "mtpd", "mtpd": info}


def event(value: dict[str, Any] | str) -> str:
    """A server-sent event."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return f"data: {text}\n\n"
