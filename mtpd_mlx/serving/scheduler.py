"""`Scheduler`: which rows of a batch do what next. Requests join and leave between rounds; called by the engine's thread alone.

One `step` prefills a piece of one prompt (in turn, where several wait) and then decodes a round of every text that has begun. A
text that is the only one is decoded as `generate` does it, with a choice of drafts of its own; beside others the number of
drafts follows the load (speculative/load_choice.py). Texts that ended stay cached while there is room: a request that begins as
one of them did prefills only what is new.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

from mtpd_mlx.serving.errors import ApiError
from mtpd_mlx.serving.jobs import Job, Request
from mtpd_mlx.serving.text import Text
from mtpd_mlx.serving.trace import NO_TRACE, Trace
from mtpd_mlx.speculative.batch import Batch, Turn
from mtpd_mlx.speculative.cancel import Cancelled, cancellable
from mtpd_mlx.speculative.finite import check_tokens
from mtpd_mlx.speculative.load_choice import LoadChoice
from mtpd_mlx.speculative.loop import Chunk, advance, timed
from mtpd_mlx.speculative.protocol import Round
from mtpd_mlx.text.tokenizer import Tokenizer

PIECE, PIECE_BESIDE = 512, 256  # tokens of a prompt that are prefilled at once; where others are decoded meanwhile
RESTING = 4  # texts that stay cached when they have ended
SeeRound = Callable[[int, int | None], None]  # rows of a round, drafts chosen for each (None: it decoded alone)


@dataclass
class _Resting:
    """A row whose text has ended, and the tokens that it has cached."""

    row: int
    held: list[int]


class Scheduler:
    """most: texts that are decoded at a time."""

    def __init__(self, batch: Batch, tokenizer: Tokenizer, most: int, trace: Trace = NO_TRACE, see: SeeRound | None = None):
        self.batch, self.most = batch, min(most, batch.max_together, batch.max_rows)
        self._tokenizer, self._trace, self._see = tokenizer, trace, see
        self.running: list[Text] = []  # those that prefill come in turn
        self.resting: list[_Resting] = []  # the last used first
        self._choice = LoadChoice(batch.costs)
        self._last: tuple[frozenset[int], int] | None = None  # rows and drafts of the last round

    @property
    def has_room(self) -> bool:
        return len(self.running) < self.most

    def admit(self, job: Job) -> None:
        """Gives the request a row, with as much of its prompt as one that rests there has cached."""
        try:
            row, cached = self._row_for(job.request)
        except Exception as error:
            job.tell(told(error))
            return
        text = Text(job, row, cached, self._tokenizer, self.batch.num_draft_tokens)
        self.running.append(text)
        self._trace.write("join", text.summary() | {"waited": time.perf_counter() - job.came})

    def _row_for(self, request: Request) -> tuple[int, int]:
        """A row, and how much of the prompt it holds."""
        resting = max(self.resting, key=lambda r: common_length(request.prompt, r.held), default=None)
        common = 0 if resting is None else min(common_length(request.prompt, resting.held), len(request.prompt) - 1)
        full = len(self.running) + len(self.resting) >= self.batch.max_rows
        if resting is None or not (common or full):
            return self.batch.join(request.sampling), 0
        reused = resting if common else self.resting[-1]
        self.resting.remove(reused)
        try:
            return reused.row, self.batch.restart(reused.row, request.sampling, common)
        except Exception:
            self.batch.leave(reused.row)
            raise

    def step(self) -> None:
        """A piece of a prompt, and a round. Whoever has gone, or is out of time, leaves before."""
        for text in list(self.running):
            if (error := text.job.over) is not None:
                self._fail(text, error)
        decoded = [t for t in self.running if not t.waits]
        if waiting := [t for t in self.running if t.waits]:
            self._prefill(waiting[0], PIECE_BESIDE if decoded else PIECE)
        if decoded := [t for t in self.running if not t.waits]:
            self._round(decoded)

    def stop(self, error: ApiError) -> None:
        """Tells everybody so."""
        for text in list(self.running):
            self._fail(text, error)

    def check(self) -> None:
        """RuntimeError where rows are lost, or their caches are not what they should be. Nothing may be running."""
        for resting in self.resting:
            if (length := self.batch.length(resting.row)) != len(resting.held):
                raise RuntimeError(f"row {resting.row}: got {length} cached positions, expected {len(resting.held)}")
        self.batch.check()

    def forget(self) -> None:
        """What rests is cached no longer."""
        while self.resting:
            self.batch.leave(self.resting.pop().row)

    def _prefill(self, text: Text, size: int) -> None:
        piece = text.piece(size)
        self.running.remove(text)  # the next piece is another text's
        self.running.append(text)

        def call() -> Chunk:
            with cancellable(lambda: text.job.over is not None):
                return Chunk([self.batch.prefill(text.row, piece)])

        try:
            chunk = timed(call)
        except Exception as error:
            self._fail(text, text.job.over if isinstance(error, Cancelled) and text.job.over else told(error))
            return
        self._trace.write("prefill", {"row": text.row, "tokens": len(piece), "seconds": chunk.seconds})
        text.prefilled(len(piece), chunk.seconds, chunk.tokens[0])
        self._settle(text)

    def _round(self, texts: list[Text]) -> None:
        try:
            backend = self.batch.alone(texts[0].row) if len(texts) == 1 else None
            if backend is not None:
                self._last = None
                chunks, chosen = [advance(backend, texts[0].next)], None
            else:
                chunks, chosen = self._together(texts)
        except Exception as error:  # the next request may fare better
            for text in texts:
                self._fail(text, told(error))
            self.forget()
            return
        if self._see is not None:
            self._see(len(texts), chosen)
        tokens = [len(chunk.tokens) for chunk in chunks]
        rows = [text.row for text in texts]
        self._trace.write("round", {"rows": rows, "drafts": chosen, "tokens": tokens, "seconds": chunks[0].seconds})
        for text, chunk in zip(texts, chunks, strict=True):
            self._take(text, chunk)

    def _together(self, texts: list[Text]) -> tuple[list[Chunk], int]:
        """A round of several texts, and the drafts that were chosen for each."""
        count = self._choice.choose(len(texts))
        turns = [Turn(t.row, t.next, None if t.repeatable else count) for t in texts]
        began = time.perf_counter()
        rounds = self.batch.round(turns)
        seconds = time.perf_counter() - began
        same = (frozenset(turn.row for turn in turns), count)
        regular = self.batch.regular and same == self._last  # whoever came has heads that catch up
        self._last = same
        own = [r for r, turn in zip(rounds, turns, strict=True) if turn.num_draft_tokens is not None]
        accepted, proposed = [r.accepted for r in own], [r.proposed for r in own]
        self._choice.observe(len(texts), count, accepted, proposed, seconds if regular else None)
        return [chunk_of(r, seconds) for r in rounds], count

    def _take(self, text: Text, chunk: Chunk) -> None:
        try:
            check_tokens(chunk.tokens, len(text.tokens))
        except ValueError as error:
            self._fail(text, told(error))
            return
        kept = text.take(chunk, self.batch.capacity)
        if self.batch.length(text.row) != kept:
            self.batch.rewind_to(text.row, kept)
        self._settle(text)

    def _settle(self, text: Text) -> None:
        """A text that has ended leaves, and its row rests."""
        if text.finish_reason is None:
            return
        self.running.remove(text)
        self._rest(text)
        self._trace.write("leave", text.summary() | {"reason": text.finish_reason})
        text.finish()

    def _fail(self, text: Text, error: ApiError) -> None:
        """What it has cached is as good as new, where its client has gone."""
        self.running.remove(text)
        if error.status == 500:
            self.batch.leave(text.row)
        else:
            self._rest(text)
        self._trace.write("leave", text.summary() | {"reason": error.code})
        text.job.tell(error)

    def _rest(self, text: Text) -> None:
        self.resting.insert(0, _Resting(text.row, text.tokens[: self.batch.length(text.row)]))
        while len(self.resting) > RESTING:
            self.batch.leave(self.resting.pop().row)


def chunk_of(result: Round, seconds: float) -> Chunk:
    return Chunk(result.emitted, round=result, seconds=seconds)


def told(error: Exception) -> ApiError:
    if isinstance(error, ApiError):
        return error
    return ApiError(500, f"{type(error).__name__}: {error}", code="internal_error")


def common_length(a: list[int], b: list[int]) -> int:
    """Length of the common beginning."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
