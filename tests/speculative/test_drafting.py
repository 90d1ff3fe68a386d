"""Rounds whose drafts are chosen: the text is plain decoding's, whatever is chosen, and what is chosen makes sense."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from helpers.fakes import VOCAB, ScriptedModel, hashed, plain_text, scripted
from hypothesis import given, settings
from hypothesis import strategies as st

from mtpd_mlx.speculative.choice import Chooser
from mtpd_mlx.speculative.drafting import ChosenDrafting, FixedDrafting, Proposal
from mtpd_mlx.speculative.lookup import Lookup
from mtpd_mlx.speculative.loop import generate
from mtpd_mlx.speculative.protocol import Round
from mtpd_mlx.speculative.round_costs import PLAIN, RoundCosts, heads, lookup
from mtpd_mlx.speculative.rounds import ChoosingStepBackend
from mtpd_mlx.speculative.stats import DecodeStats

COSTS = {PLAIN: 1.0, heads(1): 1.2, heads(2): 1.3, heads(4): 1.5, lookup(2): 1.1, lookup(4): 1.2, lookup(8): 1.3}


def chosen(most: int = 4, with_lookup: bool = True) -> ChosenDrafting:
    costs = {k: c for k, c in COSTS.items() if k.source != "heads" or k.num_drafts <= most}
    return ChosenDrafting(Chooser(RoundCosts(costs), (1, 2, 4)), Lookup(8) if with_lookup else None)


class Scheduled(ChosenDrafting):
    """Proposes at random, and checks that it was told the text."""

    def __init__(self, model: ScriptedModel, seed: int):
        super().__init__(Chooser(RoundCosts(COSTS), (1, 2, 4)), Lookup(8))
        self._model, self._rng = model, np.random.default_rng(seed)

    def propose(self, most: int) -> Proposal:
        assert self.lookup is not None
        known = self.lookup._index.tokens
        assert known[:-1] == self._model.tokens and most >= 0
        kind = [PLAIN, heads(1), heads(3), heads(4), lookup(3)][int(self._rng.integers(5))]
        if kind.num_drafts > most:
            return Proposal(PLAIN)
        if kind.source != "lookup":
            return Proposal(kind)
        drafts = self.lookup.drafts(3) if self._rng.random() < 0.5 else self._rng.integers(0, VOCAB, 3).tolist()
        return Proposal(kind, tuple(drafts)) if drafts else Proposal(PLAIN)

    def observe(
        self, proposal: Proposal, emitted: Sequence[int], proposed: int | None = None, seconds: float | None = None
    ) -> None:
        assert self.lookup is not None
        for token in emitted:
            self.lookup.add(token)


@given(
    seed=st.integers(0, 10**6), prompt=st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=9), capacity=st.integers(12, 80)
)
@settings(max_examples=60, deadline=None)
def test_any_schedule_gives_the_plain_text(seed: int, prompt: list[int], capacity: int):
    rng = np.random.default_rng(seed)
    model = ScriptedModel(script=iter(lambda: int(rng.integers(5)), None), capacity=capacity)
    backend = ChoosingStepBackend(model, Scheduled(model, seed))
    for _ in range(2):  # a second text, and a conversation that goes on with a part of it
        text = [t for chunk in generate(backend, prompt, max_tokens=60) for t in chunk.tokens]
        room = capacity - len(prompt) + 1
        assert text == plain_text(hashed, prompt, min(60, room))
        kept = int(rng.integers(len(prompt) + 1))
        backend.rewind_to(kept)
        more = [*rng.integers(0, VOCAB, 2).tolist()]
        if kept + len(more) < capacity:
            again = [t for chunk in generate(backend, more, max_tokens=20) for t in chunk.tokens]
            assert again == plain_text(hashed, [*prompt[:kept], *more], min(20, capacity - kept - 1))
        backend.rewind_to(0)


def decode(text: list[int], prompt: list[int], drafting: ChosenDrafting, right: int | None) -> tuple[list[int], DecodeStats]:
    def script():
        while True:
            yield right

    model = ScriptedModel(scripted(text, len(prompt)), script(), capacity=4000)
    backend, stats, out = ChoosingStepBackend(model, drafting), DecodeStats(4), []
    for chunk in generate(backend, prompt, max_tokens=len(text)):
        stats.add(chunk)
        out += chunk.tokens
    return out, stats


def observed_at_cost(drafting: ChosenDrafting) -> ChosenDrafting:
    """Rounds take what the table says: wall time of a fake means nothing."""
    observe = drafting.observe

    def timed(proposal: Proposal, emitted: Sequence[int], proposed: int | None = None, seconds: float | None = None) -> None:
        kind = proposal.kind if proposed else PLAIN
        observe(proposal, emitted, proposed, 0.01 * COSTS[kind])

    drafting.observe = timed  # type: ignore[method-assign]
    return drafting


def test_a_quoted_prompt_is_decoded_by_lookup_and_new_text_by_the_heads():
    rng = np.random.default_rng(3)
    source = rng.integers(1, 5000, 300).tolist()
    new = rng.integers(5000, 9000, 150).tolist()
    out, stats = decode([*source[20:220], *new], [*source, 7, 8], observed_at_cost(chosen()), right=3)
    assert out == [*source[20:220], *new]
    tokens: Counter[str] = Counter()
    for name, (_, count) in stats.chosen.items():
        tokens[name.split()[0]] += count
    assert tokens["lookup"] > 150 and tokens["heads"] > 120 and tokens["plain"] < 25
    assert stats.tokens_per_pass > 4


def test_a_text_that_nothing_predicts_is_decoded_plainly():
    rng = np.random.default_rng(4)
    out, stats = decode(rng.integers(1, 5000, 600).tolist(), [1, 2, 3], observed_at_cost(chosen()), right=0)
    assert len(out) == 600
    assert stats.chosen["plain"][0] > 560


def test_where_the_cache_ends_what_still_fits_is_verified():
    model = ScriptedModel(capacity=24)
    drafting = chosen(with_lookup=False)
    backend = ChoosingStepBackend(model, drafting)
    text = [t for chunk in generate(backend, [1, 2, 3], max_tokens=99) for t in chunk.tokens]
    assert text == plain_text(hashed, [1, 2, 3], 22) and model.length == 24


def test_a_fixed_number_of_drafts_is_fixed():
    drafting = FixedDrafting(3)
    assert drafting.propose(3) == Proposal(heads(3)) and drafting.propose(2) == Proposal(PLAIN)
    drafting.observe(drafting.propose(3), [1])
    assert drafting.propose(9).count == 3


def test_a_token_that_the_caller_names_is_followed():
    """`align`: the round goes on behind another token than the one that was chosen."""
    model = ScriptedModel()
    backend = ChoosingStepBackend(model, chosen())
    backend.prefill([1, 2, 3, 1, 2])
    result = backend.round(55)
    assert isinstance(result, Round) and model.tokens[5] == 55
    assert result.emitted == plain_text(hashed, [1, 2, 3, 1, 2, 55], len(result.emitted))


@pytest.mark.parametrize("kind, name", [(PLAIN, "plain"), (heads(4), "heads 4"), (lookup(8), "lookup 8")])
def test_kinds_are_named_as_statistics_name_them(kind, name):
    assert str(kind) == name
