"""Bound texts beside free ones: each is the one it would be alone, and what is wrong with one costs no other."""

from typing import Any

import pytest
from helpers.batches import ScriptedBatch
from helpers.bound import HashedLogits, Paths, hashed_rows, plain_bound
from test_scheduler import Client, run, scheduler

from mtpd_mlx.serving.jobs import Finished
from mtpd_mlx.speculative.bound_rows import BoundRows
from mtpd_mlx.speculative.sampling import Sampling

VOCAB = 60


def rows(count: int = 3) -> BoundRows:
    return hashed_rows(count, vocab=VOCAB)


def bound(prompt: list[int], seed: int, count: int = 12, **options: Any) -> Client:
    return Client(prompt, count, constraint=Paths(VOCAB, seed, True), **options)


def expected(prompt: list[int], seed: int, count: int = 12) -> str:
    text = plain_bound(HashedLogits(VOCAB), Paths(VOCAB, seed, True), prompt, count, set())
    return "".join(chr(33 + t) for t in text)


def test_bound_and_free_texts_are_as_they_are_alone() -> None:
    scheduled = scheduler(ScriptedBatch(8), bound=rows())
    for _ in range(3):  # the second time from what is cached
        free = [Client([i, i + 1, 5]) for i in range(3)]
        tied = [bound([i, 7, 8], i) for i in range(3)]
        for client in [each for pair in zip(free, tied, strict=True) for each in pair]:
            assert scheduled.takes(client.job)
            scheduled.admit(client.job)
        assert not scheduled.takes(bound([1], 1).job) and scheduled.takes(Client([1]).job)
        run(scheduled)
        assert [c.text for c in free] == [c.expected for c in free]
        assert [c.text for c in tied] == [expected([i, 7, 8], i) for i in range(3)]
        scheduled.check()
    assert tied[-1].end.cached_tokens == 2
    assert {turn.row for turns in scheduled.batch.rounds for turn in turns} <= set(range(8))  # type: ignore[attr-defined]


def test_kinds_that_have_room_are_let_in_first() -> None:
    scheduled = scheduler(ScriptedBatch(8), bound=rows(1))
    first, second = bound([1], 1), bound([2], 2)
    assert scheduled.takes(first.job) and not scheduled.takes(second.job, [first.job])
    assert scheduled.takes(Client([3]).job, [first.job])


def test_a_fault_of_a_grammar_costs_one_text() -> None:
    class Broken(Paths):
        def allowed(self) -> Any:
            if len(self.taken) > 3:
                raise ValueError("grammar: too much")
            return super().allowed()

    scheduled = scheduler(ScriptedBatch(8), bound=rows())
    broken, whole, free = Client([1, 2], 12, constraint=Broken(VOCAB, 1)), bound([3, 4], 2), Client([5, 6])
    for client in (broken, whole, free):
        scheduled.admit(client.job)
    run(scheduled)
    assert broken.see().end.status == 500 and "too much" in broken.end.message
    assert whole.text == expected([3, 4], 2) and free.text == free.expected
    scheduled.check()
    again = bound([1, 2], 1)
    scheduled.admit(again.job)
    run(scheduled)
    assert again.text == expected([1, 2], 1)


def test_samplings_have_decoders_of_their_own() -> None:
    scheduled = scheduler(ScriptedBatch(8), bound=rows(2))
    seeded = [bound([1, 2], 1, sampling=Sampling(temp=1.0, seed=4)) for _ in range(2)]
    for client in (seeded[0], bound([1, 2], 1), seeded[1]):
        scheduled.admit(client.job)
        run(scheduled)
    assert seeded[0].text == seeded[1].text and isinstance(seeded[1].end, Finished)
    with pytest.raises(ValueError, match="2 rows are taken"):
        full = rows(2)
        for _ in range(3):
            full.join(Sampling(), Paths(VOCAB))
