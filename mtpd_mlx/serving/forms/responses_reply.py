"""`ResponsesReply`: the object and the events of one answer of /v1/responses.
Called by forms/responses.py."""

import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from mtpd_mlx.serving.engine import Finished, Progress
from mtpd_mlx.serving.errors import ApiError
from mtpd_mlx.serving.events import event
from mtpd_mlx.serving.forms.blocks import Block, Blocks, Step
from mtpd_mlx.serving.forms.common import Said
from mtpd_mlx.serving.forms.logprobs import Scores
from mtpd_mlx.serving.parts import NOTHING_APART, Kinds

NAMES = {"text": "response.output_text", "reasoning": "response.reasoning_text", "call": "response.function_call_arguments"}


@dataclass
class ResponsesReply:
    """told: what the object repeats of the request; scores: where log-probabilities are wanted."""

    model: str
    told: dict[str, Any]
    kinds: Kinds = NOTHING_APART
    scores: Scores | None = None
    id: str = field(default_factory=lambda: "resp_" + secrets.token_hex(12))
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        self._blocks, self._sent = Blocks(self.kinds, self.scores), 0

    def total(self, said: Sequence[Said]) -> Finished:
        return said[0].end

    def whole(self, said: Sequence[Said]) -> dict[str, Any]:
        for _ in (*self._blocks.add(said[0].all.text, said[0].all.scores), *self._blocks.finish()):
            pass
        return self._ended(said[0].end)

    def begin(self) -> Iterator[str]:
        for kind in ("response.created", "response.in_progress"):
            yield self._event(kind, response=self._object("in_progress", []))

    def piece(self, index: int, progress: Progress) -> Iterator[str]:
        return self._say(self._blocks.add(progress.text, progress.scores))

    def end(self, index: int, finished: Finished) -> Iterator[str]:
        yield from self._say(self._blocks.finish())
        whole = self._ended(finished)
        yield self._event(f"response.{whole['status']}", response=whole)

    def close(self, said: Sequence[Said]) -> Iterator[str]:
        return iter(())

    def failed(self, error: ApiError) -> Iterator[str]:
        said = {"error": {"code": error.code, "message": error.message}}
        yield self._event("response.failed", response=self._object("failed", []) | said)

    def _say(self, steps: Iterator[Step]) -> Iterator[str]:
        for kind, place, block, new, scored in steps:
            about: dict[str, Any] = {"item_id": item_id(block), "output_index": place}
            name, apart = NAMES[block.kind], block.kind != "call"
            about |= {"content_index": 0} if apart else {}
            told = block.logprobs if kind == "end" else scored
            logprobs: dict[str, Any] = {"logprobs": told} if block.kind == "text" else {}
            if kind == "begin":
                yield self._event("response.output_item.added", output_index=place, item=item(block, "in_progress"))
                if apart:
                    yield self._event("response.content_part.added", **about, part=content(block, ""))
            elif kind == "more":
                yield self._event(f"{name}.delta", **about, delta=new, **logprobs)
            else:
                said = {"text": block.text} if apart else {"arguments": block.text, "name": block.name}
                yield self._event(f"{name}.done", **about, **said, **logprobs)
                if apart:
                    yield self._event("response.content_part.done", **about, part=content(block, block.text))
                yield self._event("response.output_item.done", output_index=place, item=item(block, "completed"))

    def _ended(self, finished: Finished) -> dict[str, Any]:
        short = finished.reason == "length"
        status = "incomplete" if short else "completed"
        output = [item(block, "completed") for block in self._blocks.blocks]
        output[-1]["status"] = status
        details = {"incomplete_details": {"reason": "max_output_tokens"} if short else None}
        return self._object(status, output) | details | {"usage": usage(finished)}

    def _object(self, status: str, output: list[dict[str, Any]]) -> dict[str, Any]:
        about = {"id": self.id, "object": "response", "created_at": self.created, "status": status, "model": self.model}
        return about | {"output": output, "error": None, "incomplete_details": None} | self.told | {"usage": None}

    def _event(self, kind: str, **values: Any) -> str:
        self._sent += 1
        return event({"type": kind, "sequence_number": self._sent - 1} | values, kind)


def item_id(block: Block) -> str:
    return {"text": "msg_", "reasoning": "rs_", "call": "fc_"}[block.kind] + block.id


def item(block: Block, status: str) -> dict[str, Any]:
    """An item of the output; in progress it is empty yet."""
    done = status != "in_progress"
    about: dict[str, Any] = {"id": item_id(block), "status": status}
    if block.kind == "call":
        call = {"call_id": "call_" + block.id, "name": block.name, "arguments": block.text if done else ""}
        return about | {"type": "function_call"} | call
    said = [content(block, block.text)] if done else []
    if block.kind == "reasoning":
        return about | {"type": "reasoning", "summary": [], "content": said}
    return about | {"type": "message", "role": "assistant", "content": said}


def content(block: Block, text: str) -> dict[str, Any]:
    if block.kind == "reasoning":
        return {"type": "reasoning_text", "text": text}
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": block.logprobs}


def usage(finished: Finished) -> dict[str, Any]:
    """Thoughts are counted among the output tokens: which tokens they were is not kept."""
    prompt, written = finished.prompt_tokens, finished.stats.tokens
    return {
        "input_tokens": prompt,
        "input_tokens_details": {"cached_tokens": finished.cached_tokens},
        "output_tokens": written,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": prompt + written,
        "mtpd": finished.figures(),
    }
