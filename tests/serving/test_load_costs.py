"""What rounds of several texts cost is kept from one scheduler to the next, under a key, and only once it is known."""

from pathlib import Path

import pytest

from mtpd_mlx.files.measured import CACHE, costs_file
from mtpd_mlx.serving.load_costs import ROUNDS, LoadCosts
from mtpd_mlx.speculative.load_choice import LoadChoice, costs_of_rows
from mtpd_mlx.speculative.round_costs import PLAIN, heads


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE, str(tmp_path))


def test_kept_once_there_were_rounds_enough() -> None:
    costs = LoadCosts("a machine")
    choice = LoadChoice(lambda rows: costs_of_rows(rows, (1, 2), 0.1, 0.1), known=costs.known)
    for i in range(ROUNDS):
        costs.keep(choice)
        assert not costs_file().exists()
        count = choice.choose(4)
        choice.observe(4, count, [0] * 4, [count] * 4, 0.1 + 0.3 * count if i else None)
    choice.observe(4, 0, [0] * 4, [0] * 4, 0.1)
    costs.keep(choice)
    later = LoadCosts("a machine")
    known = later.known(4)
    assert known is not None and known.keys() == {PLAIN, heads(1), heads(2)} and known[heads(1)] > 2
    assert later.known(8) is None and LoadCosts("another").known(4) is None and LoadCosts(None).known(4) is None
    before = costs_file().stat().st_mtime_ns
    costs.keep(choice)
    assert costs_file().stat().st_mtime_ns == before  # nothing new
    LoadCosts(None).keep(choice)
