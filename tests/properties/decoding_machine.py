"""`check_backend`: any sequence of prefill, step, round and rewind_to on a Backend gives the tokens of plain greedy decoding.

Called by the tests of both runtimes.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test
from tiny import VOCAB

from mtpd_mlx.measure.step_model import MLXModel
from mtpd_mlx.model.base import Base
from mtpd_mlx.model.heads import MTPHeads
from mtpd_mlx.model.runtime import mx
from mtpd_mlx.speculative.loop import generate
from mtpd_mlx.speculative.protocol import Backend, Chooses
from mtpd_mlx.speculative.rounds import StepBackend

Drafts = Callable[[Any, int], list[int]]
TOKENS = st.integers(0, VOCAB - 1)
NAMED = st.one_of(st.none(), st.none(), st.none(), TOKENS)  # None: the token that plain decoding goes on with
PREFILL_CHUNKS = [
    "mtpd_mlx.decoding.text_state.PREFILL_CHUNK",
    "mtpd_mlx.measure.step_model.PREFILL_CHUNK",
    "mtpd_mlx.speculative.rounds.PREFILL_CHUNK",
    "mtpd_onnx.runtime.limits.PREFILL_CHUNK",
]


class Oracle:
    """Plain greedy decoding and drafting the slow way: everything anew for each text."""

    def __init__(self, base: Base, heads: MTPHeads):
        self._base, self._heads = base, heads
        self._known: dict[tuple[int, ...], list[int]] = {}
        self._drafted: dict[tuple[int, ...], list[int]] = {}

    def choices(self, text: Sequence[int], count: int = 1) -> list[int]:
        """The base's own token after each of the last `count` positions of `text`."""
        key = tuple(text)
        if key not in self._known:
            logits = self._base.logits(self._base.norm(self._base.trunk(mx.array([key]))))
            self._known[key] = np.array(mx.argmax(logits[0], axis=-1)).tolist()
        return self._known[key][-count:]

    def drafts(self, text: Sequence[int]) -> list[int]:
        """What the heads expect behind `text`."""
        key = tuple(text)
        if key not in self._drafted:
            model = MLXModel(self._base, self._heads)
            model.prefill(key[:-1])
            self._drafted[key] = model.draft(key[-1])
        return self._drafted[key]

    def acceptance(self) -> set[int]:
        """The numbers of drafts that rounds accept in a few texts."""
        backend, seen = StepBackend(MLXModel(self._base, self._heads)), set()
        for prompt in ([7], [5, 6], [*range(5, 20)], [*range(90, 40, -1)]):
            backend.rewind_to(0)
            seen |= {c.round.accepted for c in generate(backend, prompt, max_tokens=40) if c.round}
        return seen


def check_backend(oracle: Oracle, make: Callable[[], Backend], drafts_of: Drafts | None = None) -> None:
    """`make`: a backend, fresh or used before. drafts_of: what it would verify behind the token that goes on."""

    class Machine(Decoding):
        def __init__(self) -> None:
            super().__init__()
            self.oracle, self.backend = oracle, make()
            self.drafts_of = drafts_of

    fewer = settings(max_examples=settings().max_examples // 4)  # an example is 20 calls
    run_state_machine_as_test(Machine, settings=fewer)


class Decoding(RuleBasedStateMachine):
    """`text`: the tokens that the backend has to hold."""

    oracle: Oracle
    backend: Backend
    drafts_of: Drafts | None

    def __init__(self) -> None:
        super().__init__()
        self.text: list[int] = []
        self.patch = pytest.MonkeyPatch()

    def teardown(self) -> None:
        self.patch.undo()

    @initialize(chunk=st.sampled_from([512, 1, 2, 3, 7]))
    def begin(self, chunk: int) -> None:
        for name in PREFILL_CHUNKS:
            self.patch.setattr(name, chunk)
        self.backend.rewind_to(0)

    @invariant()
    def holds_the_text(self) -> None:
        assert self.backend.length == len(self.text)
        assert getattr(self.backend, "tokens", self.text) == self.text

    @property
    def chooses(self) -> bool:
        return isinstance(self.backend, Chooses)

    @property
    def room(self) -> int:
        return self.backend.capacity - len(self.text)

    def named(self, token: int | None) -> int:
        if token is not None or not self.text:
            return token or 0
        return self.oracle.choices(self.text)[0]

    @precondition(lambda self: self.room)
    @rule(tokens=st.lists(TOKENS, min_size=1, max_size=12))
    def prefill(self, tokens: list[int]) -> None:
        tokens = tokens[: self.room]
        self.text += tokens
        assert [self.backend.prefill(tokens)] == self.oracle.choices(self.text)

    @precondition(lambda self: self.room)
    @rule(token=NAMED)
    def step(self, token: int | None) -> None:
        token = self.named(token)
        following = self.backend.step(token)
        self.text.append(token)
        assert [following] == self.oracle.choices(self.text)

    @precondition(lambda self: self.room > self.backend.num_draft_tokens)
    @rule(token=NAMED, count=st.integers(1, 5))
    def rounds(self, token: int | None, count: int) -> None:
        for _ in range(count):
            if self.room <= self.backend.num_draft_tokens:
                return
            named = self.named(token)
            result = self.backend.round(named)
            assert self.chooses or result.proposed in (0, self.backend.num_draft_tokens)
            if (
                result.proposed and result.source == "heads"
            ):  # accepted is what a fresh start would have drafted, whatever came before
                right = [a == b for a, b in zip(self.oracle.drafts([*self.text, named]), result.emitted, strict=False)]
                assert result.accepted == [*right[: result.proposed], False].index(False)
            self.text += [named, *result.emitted[:-1]]
            assert result.emitted == self.oracle.choices(self.text, len(result.emitted))
            token = None

    @precondition(lambda self: self.drafts_of and len(self.text) >= self.backend.num_draft_tokens)
    @rule()
    def drafts_are_those_of_a_fresh_start(self) -> None:
        assert self.drafts_of is not None
        text = [*self.text, self.named(None)]
        assert self.drafts_of(self.backend, text[-1]) == self.oracle.drafts(text)[: self.backend.num_draft_tokens]

    @rule(share=st.floats(0, 1))
    def rewind(self, share: float) -> None:
        length = round(share * len(self.text))
        self.backend.rewind_to(length)
        del self.text[length:]

    @rule(beyond=st.integers(1, 3))
    def refused_rewinds(self, beyond: int) -> None:
        for length in (-beyond, len(self.text) + beyond):
            refused(lambda length=length: self.backend.rewind_to(length))  # type: ignore[misc]

    @rule()
    def refused_prefill_of_nothing(self) -> None:
        refused(lambda: self.backend.prefill([]))

    @rule(beyond=st.integers(1, 3))
    def refused_for_want_of_room(self, beyond: int) -> None:
        refused(lambda: self.backend.prefill([1] * (self.room + beyond)))
        if not self.room:
            refused(lambda: self.backend.step(1))
        if self.room <= (0 if self.chooses else self.backend.num_draft_tokens):
            refused(lambda: self.backend.round(1))


def refused(call: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=r"got|context full") as error:
        call()
    assert len(str(error.value).splitlines()) == 1
