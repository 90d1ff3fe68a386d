"""Costs into speed: the arithmetic of probe, and the choice of a plan."""

import pytest

from mtpd_mlx.decoding.tuning import calibrate
from mtpd_mlx.decoding.tuning.plan import Plan
from mtpd_mlx.decoding.tuning.prediction import Costs, best, break_even, profile, speedup
from mtpd_mlx.speculative.protocol import Round
from mtpd_mlx.text.messages import messages_on_stderr

COSTS = Costs(128, 1.0, {m: 1.0 + 0.1 * (m - 1) for m in range(1, 18)}, {1: 1.3, 2: 1.6, 4: 2.2, 8: 3.4})


def test_speed_is_tokens_over_costs() -> None:
    assert speedup(COSTS, [0.8, 0.6]) == pytest.approx(2.4 / 1.6)
    assert COSTS.round(0) == 1.0 and COSTS.round(3) == pytest.approx(1.9) and COSTS.round(16) == pytest.approx(5.8)
    assert COSTS.head(4) == pytest.approx((2.2 - 1.4) / 4)


def test_break_even_is_where_speed_is_one() -> None:
    for drafts in (1, 2, 4, 8):
        level = break_even(COSTS, drafts)
        assert level is not None and speedup(COSTS, profile(level, drafts)) == pytest.approx(1.0, abs=1e-6)
    assert break_even(Costs(1, 1.0, {}, {1: 2.5}), 1) is None


def test_the_best_number_of_drafts() -> None:
    assert best(COSTS, profile(0.1, 8)) == (0, 1.0)
    drafts, speed = best(COSTS, profile(0.9, 8))
    assert speed == max(speedup(COSTS, profile(0.9, k)) for k in range(1, 9)) == speedup(COSTS, profile(0.9, drafts))
    assert best(COSTS, []) == (0, 1.0)


def test_mlx_lms_caches_stay_unless_another_plan_is_faster_by_more_than_noise() -> None:
    growing, fixed, compiled = Plan(), Plan("fixed"), Plan("fixed", True)
    assert calibrate.choose({growing: 1.0, fixed: 0.98}) == growing
    assert calibrate.choose({growing: 1.0, fixed: 0.9, compiled: 0.8}) == compiled
    assert calibrate.choose({fixed: 1.0}) == fixed


class Fake:
    num_draft_tokens, capacity, length = 2, 100, 0

    def __init__(self, broken: bool):
        self._broken = broken

    def prefill(self, tokens: list[int]) -> int:
        return 1

    def step(self, token: int) -> int:
        return 1

    def rewind_to(self, length: int) -> None:
        pass

    def round(self, token: int) -> Round:
        if self._broken:
            raise RuntimeError("no such kernel\nand more")
        return Round([1], 0, 2)


def test_a_plan_that_fails_is_left_out_and_said(capsys: pytest.CaptureFixture) -> None:
    with messages_on_stderr():
        times = calibrate.time_plans(lambda plan: Fake(plan.compiled), [Plan(), Plan("fixed", True)], 10)
    assert list(times) == [Plan()]
    assert capsys.readouterr().err == "mtpd: plan fixed+compiled fails here and is left out: no such kernel\n"


def test_where_every_plan_fails_that_is_said() -> None:
    with pytest.raises(RuntimeError, match=r"none of these runs on this device: fixed\+compiled"):
        calibrate.time_plans(lambda plan: Fake(plan.compiled), [Plan("fixed", True)], 10)


class Device:
    """A host and a device that works in order, in made-up seconds."""

    def __init__(self) -> None:
        self.now, self.free = 0.0, 0.0

    def enqueue(self, host: float, work: float) -> float:
        """Builds and enqueues; returns when the result is there."""
        self.now += host
        self.free = max(self.free, self.now) + work
        return self.free

    def wait(self, until: float | None = None) -> None:
        self.now = max(self.now, self.free if until is None else until)


class Timed(Fake):
    """A round: 1 s of the host, `work` of the device. The next one is enqueued before (`early`) or after this one is read."""

    def __init__(self, device: Device, work: float, early: bool):
        super().__init__(False)
        self._device, self._work, self._early, self._ready = device, work, early, device.enqueue(1, work)

    def round(self, token: int) -> Round:
        ready = self._ready
        for step in (self._enqueue, lambda: self._device.wait(ready))[:: 1 if self._early else -1]:
            step()
        return Round([1], 0, 2)

    def _enqueue(self) -> None:
        self._ready = self._device.enqueue(1, self._work)


def test_a_plan_is_timed_as_if_it_ran_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    device, plans = Device(), [Plan(), Plan("fixed"), Plan("fixed", True)]
    monkeypatch.setattr(calibrate.time, "perf_counter", lambda: device.now)
    monkeypatch.setattr(calibrate.mx, "synchronize", device.wait)
    monkeypatch.setattr(calibrate, "BUDGET", 1000)
    monkeypatch.setattr(calibrate, "ENOUGH", 1000)
    make = {Plan(): (3.0, False), Plan("fixed"): (3.5, True), Plan("fixed", True): (0.25, True)}
    times = calibrate.time_plans(lambda plan: Timed(device, *make[plan]), plans, 10)
    assert times == {Plan(): 1 + 3.0, Plan("fixed"): 3.5, Plan("fixed", True): 1.0}  # the last is bound by the host
