"""`MLXModel`: base and heads behind the StepModel protocol, step by step. The oracle of decoding/.
Called by `mtpd bench`, `mtpd verify` and measure/parity.py."""

from collections.abc import Sequence

import numpy as np

from mtpd_mlx.decoding.rewind import Marks
from mtpd_mlx.model.base import Base
from mtpd_mlx.model.blocks import make_mask
from mtpd_mlx.model.finite import marked, type_name
from mtpd_mlx.model.heads import MTPHeads
from mtpd_mlx.model.runtime import mx
from mtpd_mlx.speculative.finite import check_logits
from mtpd_mlx.speculative.rounds import PREFILL_CHUNK


class MLXModel:
    """Batch 1. `length` positions are cached; `tokens` are exactly those. Positions are the truth: caches follow them."""

    def __init__(self, base: Base, heads: MTPHeads | None, num_draft_tokens: int | None = None, capacity: int | None = None):
        available = heads.num_heads if heads is not None else 0
        wanted = available if num_draft_tokens is None else num_draft_tokens
        if not 0 <= wanted <= available:
            raise ValueError(f"num_draft_tokens: got {wanted}, expected 0..{available} (the checkpoint's heads)")
        self.base, self.heads = base, heads
        self.num_draft_tokens = wanted
        self.capacity = capacity or base.context_length
        self._guess = heads.guesser(base) if heads is not None else None
        self.reset()

    def reset(self) -> None:
        self.tokens: list[int] = []
        self._marks = Marks()
        self._cache = self.base.make_cache()
        self._head_caches = self.base.make_cache(self.num_draft_tokens)
        self._states: mx.array | None = None  # [n, d]: the cascade's input at the last n positions
        self._drafted: list[int] = []  # the tokens that the head caches were computed from
        self._head_length = 0

    @property
    def length(self) -> int:
        return len(self.tokens)

    def prefill(self, tokens: Sequence[int]) -> int:
        """Appends `tokens` in chunks; the output head runs on the last row only. Returns the main head's next token."""
        for start in range(0, len(tokens), PREFILL_CHUNK):
            hidden = self._forward(tokens[start : start + PREFILL_CHUNK])
            mx.eval(hidden)
        return int(self._best(hidden[:, -1:])[0])

    def verify(self, tokens: Sequence[int]) -> np.ndarray:
        """Appends `tokens`; the main head's argmax after each, int [m]."""
        return self._best(self._forward(tokens))

    def _best(self, hidden: mx.array) -> np.ndarray:
        logits = self.base.logits(hidden)[0]
        return np.array(marked(mx.argmax(logits, axis=-1), logits))

    def logits(self, tokens: Sequence[int]) -> np.ndarray:
        """Appends `tokens`; float32 logits [m, V] (parity reports)."""
        logits = np.array(self.base.logits(self._forward(tokens))[0].astype(mx.float32))
        check_logits(logits, self.length - len(tokens) + 1, type_name(self.base.dtype))
        return logits

    def _forward(self, tokens: Sequence[int]) -> mx.array:
        if self.length + len(tokens) > self.capacity:
            raise ValueError(f"context full: {self.length} + {len(tokens)} positions, capacity {self.capacity}")
        prenorm = self.base.trunk(mx.array([list(tokens)]), self._cache)
        postnorm = self.base.norm(prenorm)
        self.tokens.extend(int(t) for t in tokens)
        if self.heads is not None and self.num_draft_tokens:
            rows = self.heads.source(self.base, prenorm, postnorm)[0]
            self._states = rows if self._states is None else mx.concatenate([self._states, rows])
        return postnorm

    def rewind_to(self, length: int) -> None:
        """Keeps positions 0..length-1. Going back beyond the kept states recomputes the few positions they lack."""
        if not 0 <= length <= self.length:
            raise ValueError(f"rewind_to: got {length}, expected 0..{self.length}")
        del self._drafted[length:]
        self._head_length = min(self._head_length, length)
        needed_from = max(0, self._head_length - self.num_draft_tokens)
        if self._states is None or self.length - self._states.shape[0] <= needed_from:
            self._keep(length)
        else:
            recompute = self.tokens[needed_from:length]
            self._keep(needed_from)
            if recompute:
                self._forward(recompute)

    def _keep(self, length: int) -> None:
        """Drops cache, tokens and states from position `length` on."""
        if self._states is not None:
            rows = self._states.shape[0] - (self.length - length)
            self._states = self._states[:rows] if rows > 0 else None
        at = self._marks.go_back(self._cache, length)
        if at < length:
            self.base.trunk(mx.array([self.tokens[at:length]]), self._cache)
        del self.tokens[length:]

    def draft(self, next_token: int) -> list[int]:
        """K guesses for the positions after x_length = next_token. One lazy graph, one evaluation."""
        assert self.heads is not None and self._guess is not None and self._states is not None
        known = [*self.tokens, next_token]
        start = max(0, min(self._head_length, self._agreement(known) - self.num_draft_tokens))
        window = self.length - start
        state = self._states[-window:][None]  # [1, W, d]: positions start..length-1
        tokens = mx.array([known[start + 1 :]])  # [1, W]: x_{s+1}
        drafts = []
        for head, cache in zip(self.heads.heads[: self.num_draft_tokens], self._head_caches, strict=True):
            cache.trim(cache.offset - start)
            raw = head(state, self.base.embed(tokens), _mask(window, cache), cache)
            normed = head.finish(self.base, raw)
            state = self.heads.source(self.base, raw, normed)
            drafts.append(self._guess(normed[:, -1:]))  # [1, 1]
            tokens = mx.concatenate([tokens[:, 1:], drafts[-1]], axis=1)
        guesses = np.array(mx.concatenate(drafts, axis=1))[0].tolist()
        self._drafted, self._head_length = [*known, *guesses[:-1]], self.length
        self._states = self._states[-self.num_draft_tokens :]
        return guesses

    def _agreement(self, known: list[int]) -> int:
        """Length of the common prefix of `known` and the tokens the head caches were computed from (equal below length)."""
        i = min(self._head_length, len(self._drafted))
        end = min(len(known), len(self._drafted))
        while i < end and known[i] == self._drafted[i]:
            i += 1
        return i


def _mask(window: int, cache: object) -> object:
    return make_mask(window, cache, None)
