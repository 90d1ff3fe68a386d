"""`Text`: one request while it is decoded, with all of its state.
Called by serving/scheduler.py."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from mtpd_mlx.serving.jobs import Finished, Job, Progress
from mtpd_mlx.speculative.logprobs import Score
from mtpd_mlx.speculative.loop import Chunk, cut
from mtpd_mlx.speculative.stats import DecodeStats
from mtpd_mlx.text.answer import Answer, Piece
from mtpd_mlx.text.tokenizer import Tokenizer


class Rows(Protocol):
    """What batch.py's Batch and bound_rows.py's BoundRows have in common."""

    @property
    def capacity(self) -> int: ...

    def length(self, row: int) -> int: ...

    def prefill(self, row: int, tokens: Sequence[int]) -> int: ...

    def rewind_to(self, row: int, length: int) -> None: ...

    def leave(self, row: int) -> None: ...


@dataclass(eq=False)
class Text:
    """row: of `rows`; cached: tokens of the prompt that its caches held already; tokens: prompt and answer, all that was
    emitted; the last one is not cached once there is an answer."""

    job: Job
    rows: Rows
    row: int
    cached: int
    tokenizer: Tokenizer
    num_draft_tokens: int
    tokens: list[int] = field(init=False)
    seconds_to_first: float | None = field(init=False, default=None)
    finish_reason: str | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        request = self.job.request
        self.tokens, self._prefilled, self._seconds = list(request.prompt), self.cached, 0.0
        self._prompt, self._scores = list[Score | None](), list[tuple[int, Score]]()  # not told yet
        self._logprob = 0.0  # the sum of all
        self.answer, self.stats = Answer(self.tokenizer, request.stop), DecodeStats(self.num_draft_tokens)

    @property
    def waits(self) -> bool:
        """For more of its prompt to be prefilled."""
        return self._prefilled < len(self.job.request.prompt)

    @property
    def next(self) -> int:
        """The token that goes on with the text."""
        return self.tokens[-1]

    @property
    def repeatable(self) -> bool:
        return self.job.repeatable

    def piece(self, size: int) -> list[int]:
        """The next tokens of the prompt to prefill."""
        return self.job.request.prompt[self._prefilled : self._prefilled + size]

    def prefilled(self, count: int, seconds: float, first: int) -> int:
        """So many more tokens of the prompt are cached; `first` follows the last of them. As `take`."""
        self._prefilled += count
        self._seconds += seconds
        if self.waits:
            return self._prefilled
        return self.take(Chunk([first], prompt_tokens=len(self.job.request.prompt) - self.cached, seconds=self._seconds), None)

    def take(self, chunk: Chunk, capacity: int | None) -> int:
        """What one call of the decoder brought is said, as far as it belongs to the text; finish_reason is set where it ends.
        Returns how many positions stay cached. capacity: of the row, where it may be full now."""
        request, emitted = self.job.request, len(self.tokens) - len(self.job.request.prompt)
        eos = self.tokenizer.eos_token_ids
        tokens, reason = cut(chunk.tokens, request.max_tokens - emitted, eos, self.answer.see)
        self._score(tokens)
        self.tokens += tokens
        cached = len(self.tokens) - 1
        if reason is None and capacity is not None and cached >= capacity:
            reason = "context"
        kept = Chunk(tokens, reason, chunk.round, chunk.prompt_tokens, chunk.seconds)
        self.stats.add(kept)
        if self.seconds_to_first is None:
            self.seconds_to_first = time.perf_counter() - self.job.came
        if pieces := self.answer.take(kept.num_drafted):
            self._tell(pieces)
        self.finish_reason = reason
        return cached

    def _score(self, tokens: list[int]) -> None:
        """What is told of these tokens: one that ends the text stands behind all of it."""
        starts, self.answer.starts = self.answer.starts, []
        if (logprobs := self.job.request.logprobs) is None:
            return
        self._prompt += logprobs.prompt
        logprobs.prompt = []
        new = logprobs.take()[: len(tokens)]
        self._scores += zip([*starts, self.answer.length], new, strict=False)
        self._logprob += sum(score.logprob for score in new)

    def _tell(self, pieces: list[Piece]) -> None:
        scores, self._scores = self._scores, []
        prompt, self._prompt = self._prompt, []
        self.job.tell(Progress(pieces, scores, prompt))

    def finish(self) -> None:
        """Says the rest, and that it has ended."""
        if (rest := self.answer.finish()) or self._scores or self._prompt:
            self._tell([(rest, False)] if rest else [])
        reason = "stop" if self.finish_reason == "stop" else "length"
        seconds, prompt = time.perf_counter() - self.job.came, len(self.job.request.prompt)
        first = seconds if self.seconds_to_first is None else self.seconds_to_first
        logprob = self._logprob / max(1, self.stats.tokens)
        self.job.tell(Finished(reason, self.answer.stopped_by, prompt, self.cached, self.stats, first, seconds, logprob))

    def summary(self) -> dict[str, Any]:
        """For the trace."""
        return {"row": self.row, "prompt": len(self.job.request.prompt), "cached": self.cached, "tokens": self.stats.tokens}
