"""The section of docs/results.md on a real model: figures come back as they were measured, and tables say what they hold."""

import json
from pathlib import Path
from typing import Any

import pytest

from tools.experiments import real_heads

SETS = ("sums", "code")


def group(rounds: int, accepted: list[int]) -> dict[str, Any]:
    car = [count / rounds for count in accepted]
    return {"car": car, "tau": 1 + sum(car), "rounds": rounds, "distinct4": 0.5}


def measured(accepted: dict[str, list[int]]) -> dict[str, Any]:
    sets = {name: group(10, counts) | {"novel": group(5, [1, 0])} for name, counts in accepted.items()}
    return {"all": group(20, [9, 3]) | {"novel": group(10, [2, 0])}, "sets": sets}


def spec(folder: Path, *, twice: bool = False) -> dict[str, Any]:
    files = {"plain": {"sums": [5, 0], "code": [4, 2]}, "better": {"sums": [6, 2], "code": [4, 1]}}
    for name, accepted in files.items():
        figures = measured(accepted)
        (folder / f"{name}.json").write_text(json.dumps({name: {"num_heads": 2, "greedy": figures, "sampled": figures}}))
    arms = [{"key": k, "label": k, "seed": 0, "steps": 3, "file": f"{k}.json"} for k in ("plain", "better")]
    story = [
        {"key": "old", "label": "old", "tau": 1.2, "car": [0.2]},
        {"key": "refit", "label": "refit", "steps": 10, "seconds": 3, "tau": 1.9, "car": [0.9]},
        {"key": "anew", "label": "anew", "steps": 100, "seconds": 12, "tau": 2.0, "car": [1.0]},
    ]
    pairs = [{"said": "better over plain", "of": ["better"], "against": ["plain"], "aim": True}]
    groups = [{"title": "Arms", "note": "Few.", "arms": arms + arms[: int(twice)]}]
    parts = {"groups": groups, "pairs": pairs, "story": {"title": "Fine-tune", "note": "Short.", "rows": story}}
    return {"model": "Toy", "conditions": "None.", "best": {"four": "better", "eight": "plain"}} | parts


def page(folder: Path) -> str:
    (folder / "spec.json").write_text(json.dumps(spec(folder)))
    real_heads.main([str(folder / "spec.json"), str(folder / "toy.json")])
    return real_heads.section(folder / "toy.json")


def test_figures_come_back_as_they_were_measured(tmp_path: Path) -> None:
    page(tmp_path)
    (arms,) = (g["arms"] for g in real_heads.read(tmp_path / "toy.json")["groups"])
    by_key = {arm["key"]: arm for arm in arms}
    assert real_heads.taus(by_key["better"]) == pytest.approx({"sums": 1.8, "code": 1.5})
    assert real_heads.mean_of_sets(by_key["plain"], "sampled", "novel", "tau") == pytest.approx(1.2)
    assert real_heads.car(by_key["plain"]) == pytest.approx([0.45, 0.1])
    assert real_heads.gain(by_key["better"], by_key["plain"], "greedy") == (pytest.approx(100 * (1.65 / 1.55 - 1)), 1)


def test_tables_say_which_aims_are_met(tmp_path: Path) -> None:
    text = page(tmp_path)
    assert "| K = 4, greedy: mean tau of the sets at least 3 | 1.650 | no |" in text
    assert "| better over plain: +10% at equal steps, ahead on 6 of 7 sets | +6.5%, 1 of 7 sets | no |" in text
    assert "in 20% of their time | 95% in 25% of the time (10% of the steps) | no |" in text
    assert "| plain | 0 | 3 | **1.550** | 1.50 | 1.60 | 1.200 | 1.550 | 1.200 | .450 .100 |" in text
    assert "| better over plain | +6.5% (1 sets) | +6.5% (1 sets) |" in text


def test_the_same_arm_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"arms: got \['plain'\] more than once"):
        real_heads.collect(spec(tmp_path, twice=True), tmp_path)


def test_an_arm_of_means_has_no_figures_by_set(tmp_path: Path) -> None:
    content = spec(tmp_path)
    means = {"greedy": {"tau": 3.1, "novel": 2.9, "car": [0.7, 0.5]}, "sampled": {"tau": 2.5, "novel": 2.4}}
    content["groups"][0]["arms"].append({"key": "lost", "label": "lost", "seed": 0, "steps": 9, "means": means})
    content["best"]["four"] = "lost"
    (tmp_path / "spec.json").write_text(json.dumps(content))
    real_heads.main([str(tmp_path / "spec.json"), str(tmp_path / "toy.json")])
    text = real_heads.section(tmp_path / "toy.json")
    assert "| lost | 0 | 9 | **3.100** |  |  | 2.900 | 2.500 | 2.400 | .700 .500 |" in text
    assert "| K = 4, greedy: mean tau of the sets at least 3 | 3.100 | yes |" in text


def test_arms_are_added_to_those_that_are_there(tmp_path: Path) -> None:
    page(tmp_path)
    group = {
        "title": "More",
        "note": "Later.",
        "arms": [{"key": "late", "label": "late", "seed": 1, "steps": 3, "file": "plain.json"}],
    }
    pair = {"said": "better over late", "of": ["better"], "against": ["late"]}
    more = tmp_path / "more.json"
    more.write_text(json.dumps({"groups": [group], "pairs": [pair]}))
    for _ in range(2):  # the second time in place of the first
        real_heads.main([str(more), str(tmp_path / "toy.json"), "--add"])
    text = real_heads.section(tmp_path / "toy.json")
    assert text.count("## More") == text.count("## Arms") == text.count("## Fine-tune") == 1
    assert "| late | 1 | 3 | **1.550** |" in text
    assert "| better over late | +6.5% (1 sets) |" in text


def test_a_refit_has_its_table_and_its_aim(tmp_path: Path) -> None:
    page(tmp_path)
    common = {"car": [0.5], "distinct4": 0.4, "main_loss": 2.0, "forced": [1.5, 2.5]}
    rows = [
        {"key": "old", "label": "old", "tau": 1.2, "car": [0.2], "distinct4": 0.4},
        {"key": "refit-10", "label": "refit", "steps": 10, "seconds": 1.0, "tau": 2.9} | common,
        {"key": "anew-90", "label": "anew", "steps": 90, "seconds": 8.0, "tau": 3.0} | common,
    ]
    more = tmp_path / "more.json"
    more.write_text(json.dumps({"refits": [{"title": "A fine-tune on sums", "note": "Short.", "rows": rows}]}))
    real_heads.main([str(more), str(tmp_path / "toy.json"), "--add"])
    text = real_heads.section(tmp_path / "toy.json")
    assert "| the same, a fine-tune on sums | 97% in 12% of the time | yes |" in text
    assert "## A fine-tune on sums\n\nShort.\n" in text
    assert "| refit | 10 | 1.0 | 2.000 | 2.500 | **2.900** | .500 | 0.400 |" in text
    assert "Refit reaches 97% of it after 10 steps" in text
