"""Figures derived from results, on entries made by hand."""

from typing import Any

import pytest

from tools.experiments.findings import Run, extension, joint_recipe, loop_depths, speed_ratios, tau_ratios


def entry(name: str, car: list[float], steps: int = 10, step_ms: float | None = 2.0, seed: int = 0) -> dict[str, Any]:
    greedy = {"all": {"car": car, "tau": 1 + sum(car)}}
    return {"name": name, "seed": seed, "num_heads": len(car), "steps": steps, "greedy": greedy, "train": {"step_ms": step_ms}}


def timed(arm: str, plain: float, heads: float, temp: float = 0.0, runtime: str = "one") -> dict[str, Any]:
    return {"runtime": runtime, "device": "here", "setting": "toy", "arm": arm, "temp": temp, "plain": plain, "heads": heads}


def a_run(*entries: dict[str, Any], speed: list[dict[str, Any]] | None = None) -> Run:
    return Run("toy", {"setting": "toy", "arms": {f"{e['name']}.s{e['seed']}": e for e in entries}}, speed or [])


def test_speed_is_compared_greedily_on_one_runtime() -> None:
    rows = [timed("joint1-ce.s0", 100, 150), timed("joint4-mtpd.s0", 50, 150), timed("joint4-mtpd.s0", 50, 50, temp=0.7)]
    run = a_run(speed=[*rows, timed("joint4-mtpd.s0", 50, 500, runtime="other")])
    assert speed_ratios(run, "joint4-mtpd.s0") == [("one", pytest.approx(2.0))]
    assert speed_ratios(run, "joint4-ce.s0") == []


def test_extension_against_heads_from_scratch_of_the_same_way() -> None:
    loop, scratch = entry("joint4-ce-loop8", [0.5] * 8, steps=5), entry("joint8-ce", [0.6] * 8, steps=20, step_ms=4.0)
    shares = extension(a_run(loop, scratch), "ce")
    assert shares == {"cost_share": 0.125, "step_share": 0.25, "tau_share": pytest.approx(5 / 5.8)}
    assert extension(a_run(loop, scratch), "nodetach") is None
    untimed = extension(a_run(loop, scratch | {"train": {"step_ms": None}}), "ce")
    assert untimed is not None and untimed["cost_share"] is None


def test_loops_are_compared_seed_by_seed() -> None:
    names = ("joint4-mtpd-loop8", "joint4-ce-loop8")
    both = [entry(name, [0.9 - 0.1 * seed] * 8, seed=seed) for name in names for seed in (0, 1)]
    depths = loop_depths(a_run(*both, entry("joint4-mtpd-loop8", [0.1] * 8, seed=2)))
    assert depths == {0: [(0.9, 0.9)] * 4, 1: [(0.8, 0.8)] * 4}


def test_tau_ratios_are_over_one_head() -> None:
    one, four = entry("joint1-ce", [0.5]), entry("joint4-mtpd", [0.5] * 4)
    assert tau_ratios(a_run(one, four)) == {"joint4-mtpd.s0": 2.0}
    assert tau_ratios(a_run(entry("joint4-ce", [0.5] * 4), four))["joint4-mtpd.s0"] == 2.0  # without it, head 1 of four
    assert joint_recipe(a_run(entry("joint4-nodetach", [0.8] * 4), four)) == [pytest.approx(40.0)]
