"""Threads of sessions on CPUs: how many the process may have, and whether they spin while they wait."""

import os
from pathlib import Path
from types import SimpleNamespace

import onnxruntime
import pytest
from mtpd_onnx.runtime import threads
from mtpd_onnx.runtime.threads import allowed_cpus, choose_threads, set_threads


@pytest.fixture
def cpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine of 8 CPUs, of which the process may use 4; returns the file of its container's quota, not there yet."""
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 2, 3, 5}, raising=False)
    monkeypatch.setattr(threads, "QUOTA", tmp_path / "cpu.max")
    return tmp_path / "cpu.max"


@pytest.mark.parametrize(
    ("quota", "allowed"),
    [("max 100000\n", 4), ("250000 100000\n", 3), ("900000 100000\n", 4), ("1000 100000\n", 1), ("", 4), ("x", 4)],
)
def test_affinity_and_quota(cpus: Path, quota: str, allowed: int) -> None:
    assert allowed_cpus(cpus) == 4
    cpus.write_text(quota)
    assert allowed_cpus(cpus) == allowed


def test_onnxruntime_chooses_where_nothing_is_limited(cpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (choose_threads(None), choose_threads(7)) == (4, 7)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    assert (choose_threads(None), choose_threads(1)) == (None, 1)


@pytest.mark.parametrize(("load", "spins"), [(0.2, True), (3.9, True), (4.1, False)])
def test_threads_spin_on_an_idle_machine_alone(cpus: Path, monkeypatch: pytest.MonkeyPatch, load: float, spins: bool) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 9.0, 9.0), raising=False)
    entries: dict[str, str] = {}
    options = SimpleNamespace(add_session_config_entry=entries.__setitem__)
    set_threads(options, None)
    assert options.intra_op_num_threads == 4
    assert entries == {"session.force_spinning_stop": "1"} | ({} if spins else {"session.intra_op.allow_spinning": "0"})
    real = onnxruntime.SessionOptions()
    set_threads(real, 3)
    assert real.intra_op_num_threads == 3 and real.get_session_config_entry("session.force_spinning_stop") == "1"
