"""The files of docs/results: small, marked as generated, and all that the committed page is made from."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tools.experiments import report
from tools.experiments.findings import read_runs, read_speed
from tools.experiments.results_file import layout, read_results, rounded, write_results

DOCS = Path(__file__).parents[2] / "docs"
RESULTS = DOCS / "results"
LIMIT = 850_000  # bytes of all files; the JSON alone stays well below


def acceptance(rounds: int, accepted: list[int]) -> dict[str, Any]:
    car = [count / rounds if rounds else 0.0 for count in accepted]
    ar = [c / before if before else 0.0 for c, before in zip(car, [1.0, *car], strict=False)]
    return {"car": car, "ar": ar, "tau": 1 + sum(car), "rounds": rounds}


def group(rounds: int, accepted: list[int], distinct4: float) -> dict[str, Any]:
    return acceptance(rounds, accepted) | {"novel": acceptance(0, [0] * len(accepted)), "distinct4": distinct4}


def content() -> dict[str, Any]:
    """An arm with heads and a base alone, as tools/experiments/run.py adds them."""
    main = {
        "all": {"loss": 2.3456789, "entropy": 2.1, "accuracy": 0.25, "tokens": 300, "bytes": 900},
        "books": {"loss": 3.0, "entropy": 2.9, "accuracy": 0.125, "tokens": 100, "bytes": 400},
        "talk": {"loss": 2.0, "entropy": 1.9, "accuracy": 0.375, "tokens": 200, "bytes": 500},
    }
    kind = {"all": group(7, [5, 0], 0.123456), "sets": {"asked": group(7, [5, 0], 1.0)}, "domains": {"talk": 1.23456}}
    point = {"iter": 100, "main_loss": 3.21098, "head_loss": [2.0, 1.23456], "tau": 1.5}
    train = {"steps": 100, "step_ms": 12.3456, "start": None, "curve": [point], "options": {"learning_rate": 0.00012345}}
    heads = {"name": "heads", "train": train, "main": main, "greedy": kind, "sampled": kind}
    conditions = {"setting": "toy", "options": {"joint_rate": 0.00012345}, "data": {"train_tokens": 1}}
    return conditions | {"arms": {"heads.s0": heads, "base.s0": {"name": "base", "train": {"steps": 0}, "main": main}}}


def test_figures_come_back_rounded_and_counts_exactly(tmp_path: Path) -> None:
    write_results(tmp_path / "toy.json", content())
    got, arm = read_results(tmp_path / "toy.json"), content()["arms"]["heads.s0"]
    assert got.keys() == content().keys() and got["options"] == content()["options"]
    heads = got["arms"]["heads.s0"]
    assert heads["train"]["curve"] == [{"iter": 100, "main_loss": 3.211, "head_loss": [2.0, 1.235], "tau": 1.5}]
    assert heads["train"]["options"] == arm["train"]["options"] and heads["train"]["step_ms"] == 12.35
    assert heads["greedy"] == arm["greedy"] | {
        "all": arm["greedy"]["all"] | {"distinct4": 0.1235},
        "domains": {"talk": 1.235},
    }
    assert heads["main"]["all"]["loss"] == 2.34568 and heads["main"].keys() == arm["main"].keys()
    assert heads["main"]["talk"]["bits_per_byte"] == pytest.approx(2.0 * 200 / 500 / 0.69314718)
    assert got["arms"]["base.s0"].keys() == {"name", "train", "main"} and got["arms"]["base.s0"]["train"] == {"steps": 0}


def test_writing_again_what_was_read_changes_nothing(tmp_path: Path) -> None:
    for file in [f for f in RESULTS.glob("*.json") if "held_out" in json.loads(f.read_text())]:
        write_results(tmp_path / file.name, read_results(file))
        assert (tmp_path / file.name).read_text() == file.read_text(), file.name
    assert len(list(tmp_path.iterdir())) == 7


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text(json.dumps({"setting": "toy", "arms": {}}))
    with pytest.raises(ValueError, match=r"other\.json: got no 'held_out'"):
        read_results(tmp_path / "other.json")


def test_layout_keeps_values_in_short_lines() -> None:
    value = {"a": list(range(100)), "b": {str(i): i / 7 for i in range(40)}, "c": [[1, 2]] * 60, "d": None}
    text = layout(value)
    assert json.loads(text) == value
    assert max(len(line) for line in text.splitlines() if '"a"' not in line) <= 131 and len(text.splitlines()) < 80
    assert rounded({"x": [1234.56, 7], "y": (0.000123456, "z", None)}) == {"x": [1235.0, 7], "y": [0.0001235, "z", None]}


def test_committed_files_are_small_and_load() -> None:
    sizes = {file.name: file.stat().st_size for file in RESULTS.iterdir() if file.suffix != ".md"}
    assert sum(sizes.values()) <= LIMIT, sizes
    runs = read_runs(RESULTS)
    assert {run.name for run in runs} == {f"llama-{of}" for of in ("107m", "1m", "30m", "30m-recipes")} | {
        f"llama-{of}-teachers" for of in ("107m", "1m", "30m")
    }
    assert all(run.arms for run in runs) and len(read_speed(RESULTS)) > 10
    for file in RESULTS.glob("*.json"):
        made_by = json.loads(file.read_text()).get("generated_by", "by hand")
        assert made_by.startswith("python -m tools.experiments.") != (file.name == "speed.json"), file.name


def test_the_committed_page_is_what_the_files_give(tmp_path: Path) -> None:
    folder = tmp_path / "results"
    shutil.copytree(RESULTS, folder, ignore=shutil.ignore_patterns("*.svg", "*.md", report.SUMMARY_NAME))
    report.main([str(folder)])
    for page in ("results.md", *(f"results/{file.name}" for file in RESULTS.glob("*.md"))):
        assert (tmp_path / page).read_text() == (DOCS / page).read_text(), page
    assert (folder / report.SUMMARY_NAME).read_text() == (RESULTS / report.SUMMARY_NAME).read_text()
    assert {file.name for file in folder.iterdir()} == {file.name for file in RESULTS.iterdir()}
