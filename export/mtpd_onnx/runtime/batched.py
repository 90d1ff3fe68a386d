"""Several texts at once on onnxruntime: static batches, every text at its own length (greedy)."""

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mtpd_mlx.speculative.finite import NO_TOKEN, not_finite
from mtpd_onnx.manifest import Manifest
from mtpd_onnx.runtime import limits
from mtpd_onnx.runtime.runner import Runner, cache_state, float_type

MINIMUM = (1, 32)
OUTPUTS = ("accepted", "predicted", "drafts", "next_hidden_tail", "next_token_tail")


def check_batches(version: str) -> None:
    """ValueError where this onnxruntime cannot decode ragged batches."""
    if tuple(int(part) for part in version.split(".")[:2]) < MINIMUM:
        raise ValueError(
            f"--batch-size: onnxruntime {version} cannot decode texts of different lengths together, "
            f"{'.'.join(map(str, MINIMUM))} and later can; use --batch-size 1"
        )


@dataclass
class Text:
    """One text of a batch. `accepted`: one count per full round; short_rounds, plain_steps: as DecodeStats counts them."""

    prompt: list[int]
    tokens: list[int] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)
    short_rounds: int = 0
    plain_steps: int = 0
    finish_reason: str | None = None


class BatchedDecoder:
    """Decodes up to `batch_size` texts together; each is what it would be alone."""

    def __init__(self, session: Any, manifest: Manifest, provider: str, batch_size: int):
        self.num_draft_tokens, self.capacity, self.batch_size = manifest.num_heads, manifest.capacity, batch_size
        self._computed_in = manifest.activations
        state = cache_state(manifest, provider, manifest.num_heads, batch_size)
        self.runner = Runner(session, provider, state, constants={}, results={}, captured=False)
        self.texts: list[Text] = []  # of the last call of generate, after an interrupt too
        self.prefill_seconds = 0.0
        shape = (batch_size, manifest.num_heads, manifest.dims["hidden_size"])
        self._hidden_tail: np.ndarray = np.zeros(shape, float_type(manifest))

    def generate(
        self,
        prompts: Sequence[list[int]],
        max_tokens: int,
        eos: Collection[int] = frozenset(),
        stops: Sequence[Callable[[int], bool]] | None = None,
    ) -> list[Text]:
        """One Text per prompt (at most batch_size of them). `stops[i](token)` ends text i where it is true, as EOS does.
        NotFiniteError, whose `row` is that of the prompt, where the logits of a text are not finite."""
        if not 1 <= len(prompts) <= self.batch_size:
            raise ValueError(f"got {len(prompts)} prompts, expected 1..{self.batch_size}")
        for prompt in prompts:
            if not 1 <= len(prompt) < self.capacity:
                raise ValueError(f"prompt: got {len(prompt)} tokens, expected 1..{self.capacity - 1}")
        self.texts, self.prefill_seconds = [Text(list(prompt)) for prompt in prompts], 0.0
        self._max_tokens, self._eos, self._stops = max_tokens, eos, stops
        self._past: np.ndarray = np.zeros(self.batch_size, np.int32)
        self._token_tail: np.ndarray = np.zeros((self.batch_size, self.num_draft_tokens), np.int64)
        self._drafts: np.ndarray = np.zeros((self.batch_size, self.num_draft_tokens), np.int64)
        began = time.perf_counter()
        for start in range(0, max(map(len, prompts)), limits.PREFILL_CHUNK):
            chunk = [p[start : start + limits.PREFILL_CHUNK] for p in prompts]
            emitted = self._run(chunk, [True] * len(chunk))
            for i, (new, part) in enumerate(zip(emitted, chunk, strict=False)):
                if part and start + len(part) == len(prompts[i]):
                    self._emit(i, new)
        self.prefill_seconds = time.perf_counter() - began
        while any(text.finish_reason is None for text in self.texts):
            self._advance()
        return self.texts

    def _advance(self) -> None:
        """A round for texts that can have one, then a step for those too short or nearly full; the others rest meanwhile.

        Two runs, because a padded row counts as a position: a nearly full text has none to spare.
        """
        k = self.num_draft_tokens
        active = [text.finish_reason is None for text in self.texts]
        full = [bool(past + 1 + k > self.capacity) for past in self._past[: len(active)]]
        alone = [bool(past < k) or none for past, none in zip(self._past, full, strict=False)]
        for forced in (False, True):
            rows: list[list[int]] = []
            for i, text in enumerate(self.texts):
                row = [text.tokens[-1]] if forced else [text.tokens[-1], *self._drafts[i].tolist()]
                rows.append(row if active[i] and alone[i] == forced else [])
            if any(rows):
                for i, new in enumerate(self._run(rows, [forced] * len(rows))[: len(rows)]):
                    if rows[i]:
                        self.texts[i].accepted += [] if forced else [len(new) - 1]
                        self.texts[i].short_rounds += forced and not full[i]
                        self.texts[i].plain_steps += forced and full[i]
                        self._emit(i, new)

    def _emit(self, i: int, new: list[int]) -> None:
        text = self.texts[i]
        for token in new[: self._max_tokens - len(text.tokens)]:
            text.tokens.append(token)
            if token in self._eos or (self._stops is not None and self._stops[i](token)):
                text.finish_reason = "stop"
                return
        if len(text.tokens) >= self._max_tokens:
            text.finish_reason = "length"
        elif self._past[i] >= self.capacity:
            text.finish_reason = "context"

    def _run(self, rows: Sequence[Sequence[int]], forced: Sequence[bool]) -> list[list[int]]:
        """rows[b]: tokens of text b, none for one that rests; forced: they are all known. Returns what each emits."""
        k, size = self.num_draft_tokens, self.batch_size
        rows = [*rows, *[()] * (size - len(rows))]
        forced = [*forced, *[True] * (size - len(forced))]
        lengths = np.array([len(r) for r in rows], np.int32)
        width = int(lengths.max())
        tokens = np.zeros((size, width), np.int64)
        for b, row in enumerate(rows):
            tokens[b, : len(row)] = row
        last = np.maximum(lengths - 1, 0).astype(np.int64)
        count = max([1] + [len(r) for r, known in zip(rows, forced, strict=True) if not known])
        first = np.where(forced, last, 0)
        checked = np.minimum(first[:, None] + np.arange(count), last[:, None])  # [B, R]
        # of a resting text one row less than the first: its heads see one position, as the base does
        checked[lengths == 0] = -1
        following = np.concatenate([tokens, np.zeros((size, 1), np.int64)], axis=1)
        after = np.where(checked < last[:, None], np.take_along_axis(following, checked + 1, axis=1), -1)
        real = np.where(forced, np.minimum(k, self._past) + lengths, np.minimum(k + 1, lengths))  # rows of each window
        real = np.where(lengths > 0, real, 0).astype(np.int32)
        span = np.arange(max(int(real.max()), 1))
        end = np.maximum(real.astype(np.int64) - 1, 0)
        inputs: dict[str, np.ndarray] = {
            "tokens": tokens,
            "lengths": lengths,
            "past_length": np.where(lengths > 0, self._past, 1).astype(np.int32),  # a resting text has room for any padding
            "checked": checked,
            "after": after,
            "window": k - end[:, None] + np.minimum(span, end[:, None]),
            "window_lengths": real,
            "last_row": span == end[:, None],
            "window_end": end[:, None],
            "hidden_tail": self._hidden_tail,
            "token_tail": self._token_tail,
        }
        accepted, predicted, drafts, hidden_tail, token_tail = self.runner.free(inputs, OUTPUTS)
        moved = lengths > 0
        self._past = np.where(moved, self._past + accepted[:, 0] + 1, self._past).astype(np.int32)
        self._drafts = np.where(moved[:, None], drafts, self._drafts)
        self._token_tail = np.where(moved[:, None], token_tail, self._token_tail)
        self._hidden_tail = np.where(moved[:, None, None], hidden_tail, self._hidden_tail)
        counts = accepted[:, 0] - first + 1
        emitted = [p[:n].tolist() if m else [] for p, n, m in zip(predicted, counts, moved, strict=True)]
        for b, new in enumerate(emitted):
            if NO_TOKEN in new:
                raise not_finite(int(self._past[b]) - len(new) + 1 + new.index(NO_TOKEN), self._computed_in, b)
        return emitted
