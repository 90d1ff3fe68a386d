"""`write_texts`: texts of the base for many prompts, a fixed number at a time; a new one begins when one ends.
Called by data/own_text.py.

The oracle is generate_batch (model/generate.py) on one prompt after the other: the same texts. A
pass is launched before the tokens of the last one are read, so that a device waits for the host only when texts are begun.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mtpd_mlx.model.base import Base
from mtpd_mlx.model.finite import marked, type_name
from mtpd_mlx.model.runtime import mx
from mtpd_mlx.speculative.finite import NO_TOKEN, not_finite

Draw = Callable[[mx.array, mx.array], mx.array]  # logits [B, V], numbers [B] of [0, 1) -> token ids [B]
PREFILL_TOKENS = 8192  # of prompts in one pass, padding included
REFILL = 8  # texts are begun where one in so many slots is free: each time copies the caches


def argmax(logits: mx.array, numbers: mx.array) -> mx.array:
    """Greedy: the numbers decide nothing."""
    return mx.argmax(logits, axis=-1)


def numbers_of(seed: int, row: int, count: int) -> np.ndarray:
    """float32 [count] of [0, 1): what text number `row` is drawn with, whichever texts are written beside it."""
    return np.random.default_rng((seed, row)).random(count, dtype=np.float32)


@dataclass
class _Text:
    place: int
    tokens: list[int] = field(default_factory=list)
    ended: bool = False


def write_texts(
    base: Base,
    prompts: Sequence[list[int]],
    max_tokens: int,
    eos: frozenset[int],
    *,
    slots: int,
    draw: Draw = argmax,
    seed: int = 0,
    numbers: Sequence[int] | None = None,
) -> Iterator[list[tuple[int, list[int]]]]:
    """Yields lists of (place in `prompts`, text) as texts end, each with its EOS or after `max_tokens`; `slots` of them are
    written at a time. `numbers`: which number each prompt has for `seed` (default: its place).

    NotFiniteError where the logits of a text that has not ended are not finite; its `row` is the place in `prompts`.
    """
    names = range(len(prompts)) if numbers is None else numbers
    writer = _Writer(base, prompts, max_tokens, eos, draw, lambda place: numbers_of(seed, names[place], max_tokens))
    waiting = deque(sorted(range(len(prompts)), key=lambda place: len(prompts[place])))
    while waiting or writer.live:
        yield writer.refill(waiting, slots)
        yield from writer.run(_enough(len(writer.texts), bool(waiting)))


def _enough(count: int, waiting: bool) -> int:
    """How many of `count` slots must be free before the others are copied together: for new texts, or for smaller passes."""
    return max(1, count // (REFILL if waiting else 2))


class _Writer:
    """`texts`: one a row of the caches and of `current`, the last tokens; those that ended are computed on until `refill`.
    `made`: tokens of each, those not read yet included; `drawn` [B, max_tokens]: the numbers of each."""

    def __init__(
        self,
        base: Base,
        prompts: Sequence[list[int]],
        max_tokens: int,
        eos: frozenset[int],
        draw: Draw,
        numbers: Callable[[int], np.ndarray],
    ):
        self.base, self.prompts, self.max_tokens, self.eos = base, prompts, max_tokens, eos
        self.draw, self.numbers = draw, numbers
        self.texts: list[_Text] = []
        self.cache: list[Any] = []
        self.current: mx.array | None = None
        self.made = np.zeros(0, np.int64)
        self.drawn = np.zeros((0, max_tokens), np.float32)

    @property
    def live(self) -> bool:
        return any(not text.ended for text in self.texts)

    def refill(self, waiting: deque[int], slots: int) -> list[tuple[int, list[int]]]:
        """Leaves out the texts that ended and begins others in their place; those that end with their first token."""
        self._keep([i for i, text in enumerate(self.texts) if not text.ended])
        done = []
        while waiting and len(self.texts) < slots:
            group = [_Text(waiting.popleft())]
            while waiting and len(self.texts) + len(group) < slots:
                if (len(group) + 1) * len(self.prompts[waiting[0]]) > PREFILL_TOKENS:
                    break
                group.append(_Text(waiting.popleft()))
            done += self._begin(group)
        return done

    def run(self, enough: int) -> Iterator[list[tuple[int, list[int]]]]:
        """Passes until `enough` texts have ended, or all; nothing is left unread."""
        launched, free = None, 0
        if self.live:
            launched = self._advance()
        while launched is not None:
            following = self._advance() if (self.made < self.max_tokens).any() else None
            done = self._record(self.texts, launched)
            free += len(done)
            if following is not None and (free >= enough or not self.live):
                done += self._record(self.texts, following)
                following = None
            if done:
                yield done
            launched = following

    def _advance(self) -> mx.array:
        """Launches a pass of one token a text; its marked tokens [B], to be read later."""
        assert self.current is not None
        numbers = self.drawn[np.arange(len(self.texts)), np.minimum(self.made, self.max_tokens - 1)]
        self.current, seen = self._pass(self.current[:, None], self.cache, numbers)
        self.made += 1
        return seen

    def _pass(self, tokens: mx.array, cache: list[Any], numbers: np.ndarray) -> tuple[mx.array, mx.array]:
        hidden = self.base.norm(self.base.trunk(tokens, cache)[:, -1:])
        logits = self.base.logits(hidden)[:, 0]
        picked = self.draw(logits, mx.array(numbers))
        seen = marked(picked, logits)
        mx.async_eval(picked, seen)
        return picked, seen

    def _record(self, texts: list[_Text], seen: mx.array) -> list[tuple[int, list[int]]]:
        """Reads a pass; the texts that end with it."""
        done = []
        for text, token in zip(texts, np.array(seen).tolist(), strict=True):
            if text.ended:
                continue
            if token == NO_TOKEN:
                after = len(self.prompts[text.place]) + len(text.tokens)
                raise not_finite(after, type_name(self.base.dtype), text.place)
            text.tokens.append(token)
            text.ended = token in self.eos or len(text.tokens) == self.max_tokens
            if text.ended:
                done.append((text.place, text.tokens))
        return done

    def _begin(self, group: list[_Text]) -> list[tuple[int, list[int]]]:
        """Reads the prompts of a group, left-padded, and puts it beside the texts that are there."""
        prompts = [self.prompts[text.place] for text in group]
        width = max(map(len, prompts))
        padding = [width - len(p) for p in prompts]
        cache = self.base.make_batch_cache(padding)
        tokens = mx.array([[0] * pad + p for pad, p in zip(padding, prompts, strict=True)])
        drawn = np.stack([self.numbers(text.place) for text in group])
        picked, seen = self._pass(tokens, cache, drawn[:, 0])
        done = self._record(group, seen)
        if self.current is None or not self.texts:
            self.cache, self.current = cache, picked
        else:
            for ours, new in zip(self.cache, cache, strict=True):
                ours.extend(new)
            self.current = mx.concatenate([self.current, picked])
            mx.eval(self.current, *(c.state[:2] for c in self.cache))
        self.texts = [*self.texts, *group]
        self.made = np.concatenate([self.made, np.ones(len(group), np.int64)])
        self.drawn = np.concatenate([self.drawn, drawn])
        return done

    def _keep(self, rows: list[int]) -> None:
        if len(rows) == len(self.texts):
            return
        self.texts, self.made, self.drawn = [self.texts[i] for i in rows], self.made[rows], self.drawn[rows]
        if not rows:
            self.cache, self.current = [], None
            return
        assert self.current is not None
        chosen = mx.array(rows)
        self.current = self.current[chosen]
        for layer in self.cache:
            layer.filter(chosen)
        mx.eval(self.current, *(layer.state[:2] for layer in self.cache))
