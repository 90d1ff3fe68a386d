"""Results of arms that ran side by side become one file (tools/experiments/merge.py)."""

from pathlib import Path
from typing import Any

import pytest

from tools.experiments.merge import main, merged
from tools.experiments.results_file import read_results, write_results


def content(*keys: str, **changes: Any) -> dict[str, Any]:
    main_loss = {"all": {"loss": 2.5, "entropy": 2.0, "accuracy": 0.5, "tokens": 10, "bytes": 40}}
    arms = {key: {"name": key.split(".")[0], "train": {"steps": len(keys)}, "main": main_loss} for key in keys}
    conditions = {"setting": "tiny", "options": {"seeds": 2}, "data": {"vocab_size": 9}, "device": "one", "versions": {}}
    return conditions | {"arms": arms} | changes


def test_arms_are_joined_in_their_order(tmp_path: Path) -> None:
    files = [tmp_path / f"{i}.json" for i in range(2)]
    write_results(files[0], content("joint4-mtpd-ema.s0"))
    write_results(files[1], content("joint4-mtpd.s0", "joint4-ce.s0", "joint4-mtpd-ema.s0"))
    assert main([str(tmp_path / "all.json"), *map(str, files)]) == 0
    arms = read_results(tmp_path / "all.json")["arms"]
    assert list(arms) == ["joint4-ce.s0", "joint4-mtpd.s0", "joint4-mtpd-ema.s0"]
    assert [arms[key]["train"]["steps"] for key in arms] == [3, 3, 1]  # what both hold: of the first file


def test_other_conditions_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [tmp_path / f"{i}.json" for i in range(2)]
    write_results(files[0], content("joint4-ce.s0"))
    write_results(files[1], content("joint4-mtpd.s0", options={"seeds": 3}))
    with pytest.raises(ValueError, match=r"1.json: options: got \{'seeds': 3\}, expected \{'seeds': 2\}"):
        merged(files)
    with pytest.raises(SystemExit):
        main([str(tmp_path / "all.json"), *map(str, files)])
    assert "options" in capsys.readouterr().err and not (tmp_path / "all.json").exists()
