"""`Scheduler`: the next action of each row of a batch. Requests join and leave between rounds.
Called by the engine's thread alone.

One `step` prefills a piece of one prompt (in turn, where several wait) and then decodes a round of every text that has begun. A
text that is the only one is decoded as `generate` does it, with a choice of drafts of its own; beside others the number of
drafts follows the load (speculative/load_choice.py). Texts that ended stay cached while there is room: a request that begins as
one of them did prefills only what is new.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mtpd_mlx.serving.errors import ApiError
from mtpd_mlx.serving.jobs import Job, Request
from mtpd_mlx.serving.load_costs import LoadCosts
from mtpd_mlx.serving.prefix_cache import PrefixCache
from mtpd_mlx.serving.text import Rows, Text
from mtpd_mlx.serving.trace import NO_TRACE, Trace
from mtpd_mlx.speculative.batch import Batch, HasCosts, Turn
from mtpd_mlx.speculative.bound_rows import BoundRows
from mtpd_mlx.speculative.cancel import Cancelled, cancellable
from mtpd_mlx.speculative.finite import check_tokens
from mtpd_mlx.speculative.load_choice import LoadChoice
from mtpd_mlx.speculative.loop import Chunk, advance, timed
from mtpd_mlx.speculative.protocol import Round
from mtpd_mlx.speculative.saved import Saved, SavesRows
from mtpd_mlx.text.tokenizer import Tokenizer

PIECE, PIECE_BESIDE = 512, 256  # tokens of a prompt that are prefilled at once; where others are decoded meanwhile
RESTING = 4  # texts that stay cached in their rows when they have ended
LOST = 32  # tokens: a text that loses more of them is copied to the prefix cache first
SeeRound = Callable[[int, int | None], None]  # rows of a round, drafts chosen for each (None: it decoded alone)


@dataclass
class _Resting:
    """A row whose text has ended, and the tokens that it has cached."""

    rows: Rows
    row: int
    held: list[int]


class Scheduler:
    """most: texts that are decoded at a time. bound: rows of those that are bound by a grammar; each of them takes its round by
    itself, after that of the others. prefix_bytes: memory of the prefix cache; 0: there is none."""

    def __init__(
        self,
        batch: Batch,
        tokenizer: Tokenizer,
        most: int,
        trace: Trace = NO_TRACE,
        see: SeeRound | None = None,
        bound: BoundRows | None = None,
        prefix_bytes: int = 0,
    ):
        self.bound, self.prefixes = bound, PrefixCache(prefix_bytes)
        self.batch, self.most = batch, min(most, batch.max_together, batch.max_rows)
        self._tokenizer, self._trace, self._see = tokenizer, trace, see
        self.running: list[Text] = []  # those that prefill come in turn
        self.resting: list[_Resting] = []  # the last used first
        self._costs = LoadCosts(batch.costs_key if isinstance(batch, HasCosts) else None)
        self._choice = LoadChoice(batch.costs, known=self._costs.known)
        self._last: tuple[frozenset[int], int] | None = None  # rows and drafts of the last round

    @property
    def has_room(self) -> bool:
        return len(self.running) < self.most

    def takes(self, job: Job, coming: Sequence[Job] = ()) -> bool:
        """Is there room for it beside those that run, and those that are `coming`? And is the prompt read that it shares?"""
        if job.after is not None and (job.after in coming or any(t.job is job.after and t.waits for t in self.running)):
            return False
        others = [*(text.job for text in self.running), *coming]
        if len(others) >= self.most:
            return False
        if job.request.constraint is None or self.bound is None:
            return True
        return sum(each.request.constraint is not None for each in others) < self.bound.max_rows

    def admit(self, job: Job) -> None:
        """Gives the request a row, with as much of its prompt as one that rests there has cached."""
        try:
            rows, row, cached = self._row_for(job.request)
        except Exception as error:
            job.tell(told(error))
            return
        most = self.batch.num_draft_tokens if self.bound is not rows else self.bound.alone(row).num_draft_tokens
        text = Text(job, rows, row, cached, self._tokenizer, most)
        self.running.append(text)
        self._trace.write("join", text.summary() | {"waited": time.perf_counter() - job.came})

    def _row_for(self, request: Request) -> tuple[Rows, int, int]:
        """A row, and how much of the prompt it holds. Texts that rest serve the next ones of their kind; those that have lost
        their rows lie in the prefix cache."""
        constraint = request.constraint
        rows: Rows = self.batch if constraint is None else self._bound()
        most = self.batch.max_rows if constraint is None else self._bound().max_rows
        resting = [r for r in self.resting if r.rows is rows]
        best = max(resting, key=lambda r: common_length(request.prompt, r.held), default=None)
        common = 0 if best is None else min(common_length(request.prompt, best.held), len(request.prompt) - 1)
        saved, longer = self._saved(rows, request, common)
        if request.logprobs is not None and request.logprobs.of_prompt:  # what is cached has no logits
            common, saved, longer = 0, None, 0
        full = sum(text.rows is rows for text in self.running) + len(resting) >= most
        if best is not None and ((common and not longer) or full):
            reused = best if common and not longer else resting[-1]
            if longer or len(reused.held) - common > LOST:
                self._keep(reused)
            self.resting.remove(reused)
            try:
                common = self._restart(reused.row, request, 0 if longer else common)
            except Exception:
                rows.leave(reused.row)
                raise
            row = reused.row
        else:
            row, common = self._join(request), 0
        if saved is not None and longer and isinstance(rows, SavesRows):
            common = rows.load(row, saved, longer)
            self.prefixes.looked(common)
        elif not common:
            self.prefixes.looked(0)
        return rows, row, common

    def _saved(self, rows: Rows, request: Request, common: int) -> tuple[Saved | None, int]:
        """A text of the prefix cache that has more in common with the prompt than `common`, and how much; 0: none has."""
        found = self.prefixes.best(request.prompt) if isinstance(rows, SavesRows) else None
        return found if found is not None and found[1] > common + LOST else (None, 0)

    def _keep(self, resting: _Resting) -> None:
        """What rests there is copied to the prefix cache, where that can be."""
        if not self.prefixes.limit or not isinstance(resting.rows, SavesRows) or not resting.held:
            return
        saved = resting.rows.save(resting.row)
        if saved is not None:
            self.prefixes.put(saved)

    def _join(self, request: Request) -> int:
        if request.constraint is None:
            return self.batch.join(request.sampling)
        return self._bound().join(request.sampling, request.constraint, request.logprobs)

    def _restart(self, row: int, request: Request, common: int) -> int:
        if request.constraint is None:
            return self.batch.restart(row, request.sampling, common)
        return self._bound().restart(row, request.sampling, request.constraint, common, request.logprobs)

    def _bound(self) -> BoundRows:
        assert self.bound is not None
        return self.bound

    def step(self) -> None:
        """A piece of a prompt, and a round. Whoever has gone, or is out of time, leaves before."""
        for text in list(self.running):
            if (error := text.job.over) is not None:
                self._fail(text, error)
        decoded = [t for t in self.running if not t.waits]
        if waiting := [t for t in self.running if t.waits]:
            self._prefill(waiting[0], PIECE_BESIDE if decoded else PIECE)
        decoded = [t for t in self.running if not t.waits]
        if free := [t for t in decoded if t.rows is self.batch]:
            self._round(free)
        for text in decoded:
            if text.rows is not self.batch:
                self._bound_round(text)

    def stop(self, error: ApiError) -> None:
        """Tells everybody so. What rounds cost is kept for the next start."""
        self._costs.keep(self._choice)
        for text in list(self.running):
            self._fail(text, error)

    def check(self) -> None:
        """RuntimeError where rows are lost, or their caches are not what they should be. Nothing may be running."""
        for resting in self.resting:
            if (length := resting.rows.length(resting.row)) != len(resting.held):
                raise RuntimeError(f"row {resting.row}: got {length} cached positions, expected {len(resting.held)}")
        self.batch.check()
        if self.bound is not None:
            self.bound.check()
        self._costs.keep(self._choice)

    def forget(self) -> None:
        """What rests is cached no longer."""
        self.prefixes.clear()
        while self.resting:
            resting = self.resting.pop()
            resting.rows.leave(resting.row)

    def _prefill(self, text: Text, size: int) -> None:
        piece = text.piece(size)
        self.running.remove(text)  # the next piece is another text's
        self.running.append(text)

        def call() -> Chunk:
            with cancellable(lambda: text.job.over is not None):
                return Chunk([text.rows.prefill(text.row, piece)])

        try:
            chunk = timed(call)
        except Exception as error:
            self._fail(text, text.job.over if isinstance(error, Cancelled) and text.job.over else told(error))
            return
        self._trace.write("prefill", {"row": text.row, "tokens": len(piece), "seconds": chunk.seconds})
        text.prefilled(len(piece), chunk.seconds, chunk.tokens[0])
        if text.job.shared and not text.waits:
            self._keep(_Resting(text.rows, text.row, text.job.request.prompt))
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

    def _bound_round(self, text: Text) -> None:
        try:
            chunk = advance(self._bound().alone(text.row), text.next)
        except Exception as error:
            self._fail(text, told(error))
            return
        self._trace.write("round", {"rows": [text.row], "bound": True, "tokens": [len(chunk.tokens)], "seconds": chunk.seconds})
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
        kept = text.take(chunk, text.rows.capacity)
        if text.rows.length(text.row) != kept:
            text.rows.rewind_to(text.row, kept)
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
            text.rows.leave(text.row)
        else:
            self._rest(text)
        self._trace.write("leave", text.summary() | {"reason": error.code})
        text.job.tell(error)

    def _rest(self, text: Text) -> None:
        self.resting.insert(0, _Resting(text.rows, text.row, text.tokens[: text.rows.length(text.row)]))
        while len(self.resting) > RESTING:
            self._drop(self.resting.pop())

    def _drop(self, resting: _Resting) -> None:
        """Its row is free; what it held goes to the prefix cache."""
        self._keep(resting)
        resting.rows.leave(resting.row)


def chunk_of(result: Round, seconds: float) -> Chunk:
    return Chunk(result.emitted, round=result, seconds=seconds)


def told(error: Exception) -> ApiError:
    if isinstance(error, ApiError):
        return error
    return ApiError(500, f"{type(error).__name__}: {error}", code="internal_error")


def common_length(a: list[int], b: list[int]) -> int:
    """Length of the common beginning."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
