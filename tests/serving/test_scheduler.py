"""The scheduler over scripted rows: whose turn it is, who leaves when, and that every text is the one it would be alone."""

import json
import queue
import random
import time
from pathlib import Path
from typing import Any

import pytest
from helpers.batches import Letters, ScriptedBatch
from helpers.fakes import hashed, plain_text

from mtpd_mlx.serving.errors import ApiError
from mtpd_mlx.serving.jobs import Event, Finished, Job, Progress, Request
from mtpd_mlx.serving.scheduler import PIECE, PIECE_BESIDE, RESTING, Scheduler
from mtpd_mlx.serving.trace import Trace
from mtpd_mlx.speculative.finite import NO_TOKEN
from mtpd_mlx.speculative.sampling import Sampling

GREEDY, SEEDED = Sampling(), Sampling(temp=0.8, seed=3)


class Client:
    def __init__(self, prompt: list[int], max_tokens: int = 12, sampling: Sampling = GREEDY, **options: Any):
        self.told = queue.Queue[Event]()
        self.job = Job(Request(prompt, sampling, max_tokens, **options), self.told.put)
        self.events: list[Event] = []

    def see(self) -> "Client":
        while not self.told.empty():
            self.events.append(self.told.get())
        return self

    @property
    def text(self) -> str:
        return "".join(p for e in self.see().events if isinstance(e, Progress) for p, _ in e.pieces)

    @property
    def end(self) -> Any:
        last = self.see().events[-1]
        return None if isinstance(last, Progress) else last

    @property
    def expected(self) -> str:
        request = self.job.request
        return "".join(chr(33 + t) for t in plain_text(hashed, request.prompt, request.max_tokens))


def scheduler(batch: ScriptedBatch, most: int = 8, **options: Any) -> Scheduler:
    tokenizer: Any = Letters()
    return Scheduler(batch, tokenizer, most, **options)


def run(scheduled: Scheduler) -> None:
    for _ in range(10_000):
        if not scheduled.running:
            return
        scheduled.step()
    raise AssertionError("it never ends")


def test_texts_that_join_late_and_leave_early_are_their_own() -> None:
    random.seed(0)
    batch = ScriptedBatch(rows=5)
    scheduled = scheduler(batch, 4)
    clients = [
        Client([random.randrange(90) for _ in range(random.choice((1, 3, 40, 700)))], random.randrange(1, 40))
        for _ in range(40)
    ]
    batch.capacity = 1024
    waiting = list(clients)
    while waiting or scheduled.running:
        while waiting and scheduled.has_room and random.random() < 0.5:
            scheduled.admit(waiting.pop().job)
        batch.right = random.randrange(5)
        scheduled.step()
    assert max(map(len, batch.rounds)) == 4 and {len(r) for r in batch.rounds} >= {2, 3, 4}
    for client in clients:
        assert client.text == client.expected and client.end.stats.tokens == client.job.request.max_tokens
    scheduled.check()
    assert len(batch.rows) == len(scheduled.resting) <= RESTING


def test_a_text_that_is_alone_is_decoded_by_its_own_decoder() -> None:
    batch = ScriptedBatch()
    scheduled, seen = scheduler(batch), list[tuple[int, int | None]]()
    scheduled._see = lambda rows, drafts: seen.append((rows, drafts))
    first, second = Client([1, 2, 3], 30), Client([4, 5], 6)
    scheduled.admit(first.job)
    for _ in range(3):
        scheduled.step()
    assert not batch.rounds
    scheduled.admit(second.job)
    run(scheduled)
    assert batch.rounds and first.text == first.expected and second.text == second.expected
    assert {rows for rows, _ in seen} == {1, 2} and all((drafts is None) == (rows == 1) for rows, drafts in seen)


def test_long_prompts_come_in_pieces_between_the_rounds_of_others() -> None:
    batch = ScriptedBatch(capacity=4096)
    scheduled = scheduler(batch)
    talking, long, short = Client([1, 2], 60), Client([7] * 2000, 4), Client([9, 9], 4)
    scheduled.admit(talking.job)
    scheduled.step()
    scheduled.admit(long.job)
    scheduled.admit(short.job)
    before = len(talking.see().events)
    for _ in range(4):
        scheduled.step()
    assert len(talking.see().events) >= before + 4, "a long prompt keeps another text waiting"
    assert short.text, "a short prompt waits behind a long one"
    assert max(size for _, size in batch.pieces) <= PIECE_BESIDE
    run(scheduled)
    assert long.text == long.expected and sum(size for row, size in batch.pieces if row == 1) == 2000
    scheduled.admit(Client([8] * 1300, 2).job)
    scheduled.step()
    assert batch.pieces[-1][1] == PIECE


def test_a_request_goes_on_where_an_earlier_text_began_alike() -> None:
    batch = ScriptedBatch()
    scheduled = scheduler(batch)
    first = Client([1, 2, 3, 4], 10)
    scheduled.admit(first.job)
    run(scheduled)
    said = [ord(c) - 33 for c in first.text]
    again = Client([1, 2, 3, 4, *said, 50, 51], 10)
    scheduled.admit(again.job)
    run(scheduled)
    assert again.end.cached_tokens == 13 and again.text == again.expected  # the last token is not cached
    other = Client([30, 31], 3)
    scheduled.admit(other.job)
    run(scheduled)
    assert other.end.cached_tokens == 0 and len(batch.rows) == 2


def test_rows_at_rest_make_room() -> None:
    batch = ScriptedBatch(rows=2)
    scheduled = scheduler(batch)
    for i in range(6):
        client = Client([i, i + 20], 5)
        scheduled.admit(client.job)
        run(scheduled)
        assert client.text == client.expected
    assert len(batch.rows) == 2


def test_who_has_gone_or_is_late_leaves_before_the_next_round() -> None:
    batch = ScriptedBatch()
    scheduled = scheduler(batch)
    gone, late, stays = Client([1, 2], 500), Client([3, 4], 500), Client([5, 6], 8)
    for client in (gone, late, stays):
        scheduled.admit(client.job)
    for _ in range(4):
        scheduled.step()
    gone.job.cancelled.set()
    late.job.deadline = time.perf_counter() - 1
    rounds = len(batch.rounds)
    scheduled.step()
    assert [len(r) for r in batch.rounds[rounds:]] in ([], [1])
    assert gone.see().end.code == "cancelled" and late.see().end.status == 504
    run(scheduled)
    assert stays.text == stays.expected
    scheduled.check()


def test_a_text_without_finite_logits_ends_alone() -> None:
    batch = ScriptedBatch(singly=False)
    batch.target = lambda tokens: NO_TOKEN if tokens[0] == 13 and len(tokens) > 6 else hashed(tokens)
    scheduled = scheduler(batch)
    bad, good = Client([13, 2], 50), Client([5, 6], 20)
    scheduled.admit(bad.job)
    scheduled.admit(good.job)
    run(scheduled)
    error = bad.see().end
    assert isinstance(error, ApiError) and error.status == 500 and "not finite after" in error.message
    assert good.text == good.expected and isinstance(good.end, Finished)


def test_a_fault_of_a_round_ends_its_texts_and_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = ScriptedBatch()
    scheduled = scheduler(batch)
    clients = [Client([i, 2], 9) for i in range(3)]
    for client in clients[:2]:
        scheduled.admit(client.job)
    scheduled.step()
    with monkeypatch.context() as broken:
        broken.setattr(batch, "_turn", lambda turn: 1 / 0)
        scheduled.step()
    assert all("ZeroDivisionError" in c.see().end.message for c in clients[:2]) and not batch.rows
    scheduled.admit(clients[2].job)
    run(scheduled)
    assert clients[2].text == clients[2].expected


def test_seeded_texts_choose_for_themselves() -> None:
    batch = ScriptedBatch()
    scheduled = scheduler(batch)
    for client in (Client([1, 2], 9, SEEDED), Client([3, 4], 9), Client([5], 9, Sampling(temp=0.5))):
        scheduled.admit(client.job)
    run(scheduled)
    counts = {turn.row: turn.num_draft_tokens for turns in batch.rounds for turn in turns}
    assert counts[0] is None and counts[1] is not None and counts[2] is not None


def test_stop_texts_end_their_own_text(tmp_path: Path) -> None:
    batch, trace = ScriptedBatch(), Trace(tmp_path / "trace.jsonl")
    scheduled = scheduler(batch, trace=trace)
    other = Client([3, 4], 20)
    ended = Client([1, 2], 20, stop=(Client([1, 2], 20).expected[5:8],))
    for client in (other, ended):
        scheduled.admit(client.job)
    run(scheduled)
    assert ended.text == ended.expected[:5] and ended.end.reason == "stop" and other.text == other.expected
    trace.close()
    lines = [json.loads(line) for line in (tmp_path / "trace.jsonl").read_text().splitlines()]
    assert [line["event"] for line in lines].count("leave") == 2 and {"join", "prefill", "round"} <= {x["event"] for x in lines}
    assert sum(sum(line["tokens"]) for line in lines if line["event"] == "round") >= 23


def test_a_lost_row_is_found() -> None:
    batch = ScriptedBatch()
    scheduled = scheduler(batch)
    client = Client([1, 2], 5)
    scheduled.admit(client.job)
    run(scheduled)
    scheduled.check()
    batch.rows[0].rewind_to(1)
    with pytest.raises(RuntimeError, match="row 0: got 1 cached"):
        scheduled.check()
