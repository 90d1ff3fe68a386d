"""Heads along texts written once: the figures are those of mtpd eval's measurement, and are not made twice."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import write_base, write_checkpoint

from mtpd_mlx.measure.evaluate import measure
from mtpd_mlx.model.load_save import load_checkpoint
from tools.experiments.own_texts import Texts, mean_tau, measure_heads, open_base, write_texts


@pytest.fixture(scope="module")
def heads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own-texts")
    base = write_base(folder / "base", scale=2.0)
    for name, prompts in (("a", ["hello", "sums"]), ("b", ["words of a longer prompt"])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"prompt": p}) + "\n" for p in prompts))
    return write_checkpoint(folder / "heads", base, num_heads=2, noise=0.01)


def written(heads: Path) -> Texts:
    files = [heads.parent / f"{name}.jsonl" for name in "ab"]
    return write_texts(open_base(str(heads.parent / "base")), files, 24, None)


def test_figures_are_those_of_eval(heads: Path, tmp_path: Path) -> None:
    made = written(heads)
    made.save(tmp_path / "texts.json")
    texts = Texts.load(tmp_path / "texts.json")
    assert (texts.sets, texts.own) == (["a", "a", "b"], made.own)
    base, loaded, _ = load_checkpoint(heads)
    found = measure_heads(base, heads, texts)
    for name, which in (("a", [0, 1]), ("b", [2])):
        plain = measure(base, loaded, [texts.own["greedy"][i] for i in which])
        assert {key: found["greedy"]["sets"][name][key] for key in plain} == plain
    assert found["sampled"]["all"]["rounds"] > 0
    sets = found["greedy"]["sets"]
    assert mean_tau(found) == pytest.approx((sets["a"]["tau"] + sets["b"]["tau"]) / 2)


def test_what_is_measured_is_not_measured_again(heads: Path, tmp_path: Path) -> None:
    written(heads).save(tmp_path / "texts.json")
    (tmp_path / "done.json").write_text(json.dumps({"greedy": {"sets": {"a": {"tau": 1.5}}}}))
    command = [sys.executable, "-m", "tools.experiments.own_texts", str(heads.parent / "base"), str(tmp_path)]
    run = subprocess.run([*command, "--heads", "done=nowhere", f"new={heads}"], capture_output=True, text=True, check=True)
    assert "done: tau 1.500" in run.stdout
    assert "greedy" in json.loads((tmp_path / "new.json").read_text())
    refused = subprocess.run([*command, "--heads", "nameless"], capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert refused.stderr == "own_texts: error: --heads: got nameless, expected NAME=FOLDER, each name once\n"
