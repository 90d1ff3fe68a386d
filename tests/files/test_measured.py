"""Costs that were measured before: kept by key, forgotten when old; damaged files, folders that cannot be written."""

import json
import os
import time
from pathlib import Path

import pytest

from mtpd_mlx.files.measured import CACHE, DAYS, MOST, StoredCosts, cores, costs_file, processor, store_costs, stored_costs

COSTS = StoredCosts({"plain": 1.0, "heads 2": 1.4}, "fixed")


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    return costs_file()


def test_costs_come_back_by_key(file: Path) -> None:
    assert stored_costs("a") is None and not file.exists()
    store_costs("a", COSTS)
    store_costs("b", StoredCosts({"plain": 2.0}))
    assert stored_costs("a") == COSTS and stored_costs("b") == StoredCosts({"plain": 2.0}) and stored_costs("c") is None
    store_costs("a", StoredCosts({"plain": 3.0}))
    assert stored_costs("a") == StoredCosts({"plain": 3.0})


def test_the_newest_are_kept(file: Path) -> None:
    file.parent.mkdir()
    now = time.time()
    entry = {"costs": {"plain": 1.0}, "plan": None}
    file.write_text(json.dumps({f"{i}": entry | {"time": now - i} for i in range(MOST + 5)}))
    assert stored_costs("3") is not None
    store_costs("new", COSTS)
    kept = json.loads(file.read_text())
    assert len(kept) == MOST and "new" in kept and str(MOST + 4) not in kept and "0" in kept


def test_old_entries_are_measured_again(file: Path) -> None:
    store_costs("a", COSTS)
    known = json.loads(file.read_text())
    for age in (DAYS * 86400 + 60, -3600):  # too old; from the future
        known["a"]["time"] = time.time() - age
        file.write_text(json.dumps(known))
        assert stored_costs("a") is None


NO_COSTS = ['{"plain": -1}', '{"plain": NaN}', "{}", "[1]", "3"]


@pytest.mark.parametrize(
    "content",
    [
        *("", "[]", "{", '{"a": 3}', '{"a": {"time": "x"}}', '{"a": {"time": TIME}}'),
        *(f'{{"a": {{"time": TIME, "costs": {costs}}}}}' for costs in NO_COSTS),
    ],
)
def test_a_damaged_file_counts_as_empty(file: Path, content: str) -> None:
    file.parent.mkdir()
    file.write_text(content.replace("TIME", str(time.time())))
    assert stored_costs("a") is None
    store_costs("b", COSTS)
    assert stored_costs("b") == COSTS


def test_a_folder_that_cannot_be_written_is_no_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE, os.devnull)
    store_costs("a", COSTS)
    assert stored_costs("a") is None


def test_where_the_file_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(CACHE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert costs_file() == tmp_path / "mtpd" / "round-costs.json"


def test_the_processor_has_a_name() -> None:
    assert processor().endswith(f", {cores()} cores") and cores() >= 1
