"""`BatchedDecoder`: a fixed number of texts that begin and end together, over an OnnxBatch.
Called by runtime/batched_generate.py."""

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace

from mtpd_mlx.speculative.batch import Batch, Turn
from mtpd_mlx.speculative.finite import NO_TOKEN, NotFiniteError, not_finite
from mtpd_mlx.speculative.load_choice import LoadChoice
from mtpd_mlx.speculative.loop import Chunk
from mtpd_mlx.speculative.protocol import Round
from mtpd_mlx.speculative.sampling import Sampling


@dataclass
class Text:
    """One text of a batch. chunks: what brought its tokens, each with the number of texts that its seconds were spent on."""

    prompt: list[int]
    tokens: list[int] = field(default_factory=list)
    chunks: list[tuple[Chunk, int]] = field(default_factory=list)
    finish_reason: str | None = None


class BatchedDecoder:
    """Decodes up to batch.max_together texts together; each is what it would be alone. num_draft_tokens: heads' drafts of every
    round; None: as many as pay for so many texts."""

    def __init__(self, batch: Batch, num_draft_tokens: int | None = None, computed_in: str | None = None):
        self.batch, self.capacity, self.batch_size = batch, batch.capacity, batch.max_together
        self.num_draft_tokens, self._fixed, self._computed_in = batch.num_draft_tokens, num_draft_tokens, computed_in
        self._choice = LoadChoice(batch.costs)
        self.texts: list[Text] = []  # of the last call of generate, after an interrupt too

    def generate(
        self,
        prompts: Sequence[list[int]],
        max_tokens: int,
        eos: Collection[int] = frozenset(),
        stops: Sequence[Callable[[int], bool]] | None = None,
        samplings: Sequence[Sampling] | None = None,
    ) -> list[Text]:
        """One Text per prompt (at most batch_size of them). `stops[i](token)` ends text i where it is true, as EOS does.
        NotFiniteError, whose `row` is that of the prompt, where the logits of a text are not finite."""
        if not 1 <= len(prompts) <= self.batch_size:
            raise ValueError(f"got {len(prompts)} prompts, expected 1..{self.batch_size}")
        for prompt in prompts:
            if not 1 <= len(prompt) < self.capacity:
                raise ValueError(f"prompt: got {len(prompt)} tokens, expected 1..{self.capacity - 1}")
        self.texts = [Text(list(prompt)) for prompt in prompts]
        self._max_tokens, self._eos, self._stops = max_tokens, eos, stops
        self._samplings = samplings or [Sampling()] * len(prompts)
        rows = [self.batch.join(sampling) for sampling in self._samplings]
        try:
            for i, row in enumerate(rows):
                self._prefill(i, row)
            while active := [i for i, text in enumerate(self.texts) if text.finish_reason is None]:
                self._advance(active, rows)
        finally:
            for row in rows:
                self.batch.leave(row)
        return self.texts

    def _prefill(self, i: int, row: int) -> None:
        prompt, began = self.texts[i].prompt, time.perf_counter()
        try:
            token = self.batch.prefill(row, prompt)
        except NotFiniteError as error:
            raise NotFiniteError(str(error), i) from None
        self._take(i, row, Chunk([token], prompt_tokens=len(prompt), seconds=time.perf_counter() - began))

    def _advance(self, active: list[int], rows: list[int]) -> None:
        """A round of those that have not ended. Seeded texts draft as they would alone."""
        count = self._choice.choose(len(active)) if self._fixed is None else self._fixed
        turns = []
        for i in active:
            room = self.capacity - self.batch.length(rows[i]) - 1
            free = self._fixed is None and not self._samplings[i].greedy and self._samplings[i].seed is not None
            drafts = None if free else count if count <= room or self._fixed is None else 0
            turns.append(Turn(rows[i], self.texts[i].tokens[-1], drafts))
        began = time.perf_counter()
        results = self.batch.round(turns)
        seconds = time.perf_counter() - began
        self._observe(turns, results, count, seconds)
        for i, result in zip(active, results, strict=True):
            if NO_TOKEN in result.emitted:
                raise not_finite(self.batch.length(rows[i]), self._computed_in, i)
            self._take(i, rows[i], Chunk(result.emitted, round=result, seconds=seconds), len(turns))

    def _observe(self, turns: Sequence[Turn], results: Sequence[Round], count: int, seconds: float) -> None:
        if self._fixed is None:
            own = [r for turn, r in zip(turns, results, strict=True) if turn.num_draft_tokens is not None]
            accepted, proposed = [r.accepted for r in own], [r.proposed for r in own]
            self._choice.observe(len(turns), count, accepted, proposed, seconds if self.batch.regular else None)

    def _take(self, i: int, row: int, chunk: Chunk, together: int = 1) -> None:
        text, kept = self.texts[i], list[int]()
        for token in chunk.tokens[: self._max_tokens - len(text.tokens)]:
            kept.append(token)
            if token in self._eos or (self._stops is not None and self._stops[i](token)):
                text.finish_reason = "stop"
                break
        text.tokens += kept
        text.chunks.append((replace(chunk, tokens=kept), together))
        if text.finish_reason is None and len(text.tokens) >= self._max_tokens:
            text.finish_reason = "length"
        elif text.finish_reason is None and self.batch.length(row) >= self.capacity:
            text.finish_reason = "context"
