"""What a timing says: medians of runs and of passes."""

import itertools
from itertools import cycle

import pytest
from helpers.fakes import ScriptedModel, scripted

from mtpd_mlx.speculative import loop
from mtpd_mlx.speculative.bench import Arm, Run, backend_arm, interleave
from mtpd_mlx.speculative.rounds import StepBackend


def test_a_pass_is_the_median_of_all_passes():
    runs = [Run([1, 2, 3], 0.5, 0.9, [0.001, 0.002]), Run([1, 2], 0.5, 0.9, [0.003, 0.004, 5.0])]
    assert Arm("a", lambda prompt, count: runs[0], runs=runs).milliseconds_per_pass == pytest.approx(3.0)
    assert Arm("genai", lambda prompt, count: runs[0], runs=[Run([1], 0.5, 0.9)]).milliseconds_per_pass is None


def test_every_pass_after_prefill_is_timed_once(monkeypatch):
    """Rounds of three right drafts: 1 token of prefill, 4 + 4, and a last round of which one token is left over."""
    clock = itertools.count()
    monkeypatch.setattr(loop.time, "perf_counter", lambda: next(clock) / 1000)  # every call takes a millisecond
    backend = StepBackend(ScriptedModel(scripted(list(range(40)), 2), script=cycle([3]), num_drafts=3))
    arm = backend_arm("mtp", backend)
    interleave([arm], [[7, 7]], 10, repeats=2)
    assert [len(run.tokens) for run in arm.runs] == [10, 10]
    assert [len(run.pass_seconds) for run in arm.runs] == [3, 3]  # the run before, which does not count, is not among them
    assert arm.stats.accepted == [3, 3, 3] * 2
    assert sum(sum(run.pass_seconds) for run in arm.runs) == pytest.approx(arm.stats.decode_seconds)
