"""Bound texts: a model of logits that are a function of the prefix, a grammar that is one too, and the naive oracle."""

import zlib
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np

from mtpd_mlx.speculative.bound_rows import BoundRows
from mtpd_mlx.speculative.constrained import ConstrainedBackend
from mtpd_mlx.speculative.drafting import FixedDrafting, Proposal
from mtpd_mlx.speculative.loop import generate
from mtpd_mlx.speculative.round_costs import PLAIN, heads, lookup
from mtpd_mlx.speculative.sampling import Sampling, marginal

VOCAB, PROMPT = 12, [1, 2, 3]


def _rng(tokens: Sequence[int], *salt: int) -> np.random.Generator:
    return np.random.default_rng([zlib.crc32(np.asarray(tokens, np.int64).tobytes()), *salt])


class HashedLogits:
    """A LogitModel. `right`: how often a head's logits are those of the main head behind its own drafts."""

    def __init__(self, vocab: int, heads: int = 3, capacity: int = 128, seed: int = 0, right: float = 0.5):
        self.num_draft_tokens, self.capacity = heads, capacity
        self._vocab, self._seed, self._right = vocab, seed, right
        self.tokens: list[int] = []
        self._ran: list[int] = []
        self.fault: BaseException | None = None

    @property
    def length(self) -> int:
        return len(self.tokens)

    def after(self, tokens: Sequence[int]) -> np.ndarray:
        return _rng(tokens, self._seed).normal(0, 2, self._vocab).astype(np.float32)

    def prefill(self, tokens: Sequence[int]) -> np.ndarray:
        self.tokens += tokens
        return self.after(self.tokens)[None]

    def run(self, tokens: Sequence[int]) -> np.ndarray:
        if self.fault is not None:
            raise self.fault
        assert self.length + len(tokens) <= self.capacity
        self._ran = list(tokens)
        return np.stack([self.after([*self.tokens, *tokens[: i + 1]]) for i in range(len(tokens))])

    def keep(self, count: int) -> None:
        assert 1 <= count <= len(self._ran)
        self.tokens += self._ran[:count]

    def draft(self, count: int, token: int, choose: Callable[[np.ndarray], int | None]) -> None:
        text = [*self.tokens, token]
        for k in range(count):
            right = _rng(text, self._seed, k).random() < self._right
            choice = choose(self.after(text) if right else _rng(text, k).normal(0, 2, self._vocab).astype(np.float32))
            if choice is None:
                return
            text.append(choice)

    def rewind_to(self, length: int) -> None:
        if not 0 <= length <= self.length:
            raise ValueError(f"rewind_to: got {length}, expected 0..{self.length}")
        del self.tokens[length:]


class Paths:
    """A constraint whose next tokens are a function of those taken; 0 ends a text, and is seldom allowed. `known`: it says
    which tokens have no choice (of every fourth there is none)."""

    ends: Collection[int] = frozenset({0})

    def __init__(self, vocab: int, seed: int = 0, known: bool = False):
        self._vocab, self._seed, self._known = vocab, seed, known
        self.taken: list[int] = []

    def _after(self, taken: Sequence[int]) -> np.ndarray:
        rng = _rng(taken, self._seed, 77)
        size = 1 if rng.random() < 0.25 else int(rng.integers(2, self._vocab - 1))
        mask = np.zeros(self._vocab, bool)
        mask[rng.permutation(np.arange(1, self._vocab))[:size]] = True
        mask[0] = size > 1 and rng.random() < 0.05
        return mask

    def allowed(self) -> np.ndarray:
        return self._after(self.taken)

    def forced(self) -> list[int]:
        taken, found = list(self.taken), []
        while self._known and (mask := self._after(taken)).sum() == 1:
            found.append(int(mask.argmax()))
            taken.append(found[-1])
        return found

    def take(self, token: int) -> bool:
        if not self._after(self.taken)[token]:
            return False
        self.taken.append(token)
        return True

    def back(self, count: int) -> None:
        assert 0 <= count <= len(self.taken)
        del self.taken[len(self.taken) - count :]


def plain_bound(model: HashedLogits, constraint: Paths, prompt: Sequence[int], count: int, ends: Collection[int]) -> list[int]:
    """The oracle: token after token, the best of those that are allowed."""
    text: list[int] = []
    while len(text) < count and not (text and text[-1] in ends):
        logits = np.where(constraint.allowed(), model.after([*prompt, *text]), -np.inf)
        text.append(int(logits.argmax()))
        constraint.taken.append(text[-1])
    return text


def masked_marginal(
    model: HashedLogits, constraint: Paths, prompt: Sequence[int], text: Sequence[int], sampling: Sampling
) -> np.ndarray:
    """float32 [len(text), V]: what each token of `text` is drawn from, one by one."""
    rows = []
    for i, token in enumerate(text):
        before = [*prompt, *text[:i]]
        size = sampling.repetition_context_size
        context = np.array([([before[0]] * size + before)[-size:]])
        logits = np.where(constraint.allowed(), model.after(before), -np.inf)[None].astype(np.float32)
        rows.append(marginal(logits, sampling, context)[0])
        constraint.taken.append(token)
    return np.stack(rows)


def hashed_rows(most: int, capacity: int = 128, vocab: int = 97, drafts: int = 3) -> BoundRows:
    """Of a runtime of HashedLogits."""

    def opened(sampling: Sampling) -> ConstrainedBackend:
        return ConstrainedBackend(HashedLogits(vocab, capacity=capacity), FixedDrafting(drafts), sampling)

    return BoundRows(opened, most, capacity)


class Shuffled(FixedDrafting):
    """Rounds of every kind in turn; lookup's drafts are random, so seldom legal to their end."""

    def __init__(self, seed: int = 0):
        super().__init__(0)
        self._rng = np.random.default_rng(seed)

    def propose(self, most: int) -> Proposal:
        kind = [PLAIN, heads(1), heads(3), lookup(4), heads(2)][self._rng.integers(5)]
        if kind.num_drafts > most:
            return Proposal(PLAIN)
        drafts = self._rng.integers(1, VOCAB, kind.num_drafts) if kind.source == "lookup" else ()
        return Proposal(kind, tuple(int(t) for t in drafts))


def opened(drafting: Any, constraint: Paths, sampling: Sampling | None = None, **options: Any) -> ConstrainedBackend:
    backend = ConstrainedBackend(HashedLogits(VOCAB, **options), drafting, sampling)
    backend.bind(constraint)
    return backend


def written(backend: ConstrainedBackend, count: int, prompt: Sequence[int] = PROMPT, **options: Any) -> list[int]:
    chunks = generate(backend, prompt, max_tokens=count, eos_token_ids={0}, **options)
    return [t for chunk in chunks for t in chunk.tokens]
