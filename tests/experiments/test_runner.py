"""The experiments' runner on a toy setting: every kind of arm, killed and continued, and the report made of its results."""

import json
import lzma
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tools.experiments.results_file import read_results

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
TEXT = ROOT / "mtpd_mlx" / "assets" / "demo" / "text"
ASKED = ("gsm8k_test", "humaneval", "mbpp", "mt_bench", "aqua_rat", "truthfulqa")
PARTS = ["--part", "joint4", "loops", "own", "--arms", "joint4-mtpd", "joint4-mtpd-loop8", "frozen-ce-own"]


def write_source(folder: Path) -> Path:
    """A few rows of the demo's text, laid out as tools/experiments/prepare.py reads them."""
    rows = [json.loads(line)["text"] for line in (TEXT / "train.jsonl").read_text().splitlines()[:80]]
    (folder / "train").mkdir(parents=True)
    (folder / "eval").mkdir()
    pairs = [{"prompt": text[:40], "response": text[40:]} for text in rows[:10]]
    for name, kind in (("dialogues", [{"text": text} for text in rows[:60]]), ("pairs", pairs)):
        with lzma.open(folder / "train" / f"{name}.jsonl.xz", "wt") as f:
            f.write("".join(json.dumps(row) + "\n" for row in kind))
    asked = [{"id": f"q/{i}", "prompt": text[:50], "reference": None} for i, text in enumerate(rows[60:70])]
    held = [
        {"id": f"heldout/{kind}/{i}", "prompt": text[:60], "reference": text[60:200], "kind": kind, "source": kind}
        for i, text in enumerate(rows[70:])
        for kind in ("text", "pair")
    ]
    for name, content in [(file, asked) for file in ASKED] + [("heldout_lm", held)]:
        (folder / "eval" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("experiment")
    out = folder / "data"
    options = ["--vocab-size", "320", "--longest", "80", "--prompts", "4"]
    assert tool("prepare", str(write_source(folder / "source")), str(out), *options).wait(60) == 0
    return out


def tool(name: str, *arguments: str) -> subprocess.Popen:
    paths = os.pathsep.join([str(ROOT), str(ROOT / "export")])
    command = [sys.executable, "-m", f"tools.experiments.{name}", *arguments]
    return subprocess.Popen(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": paths}, stdout=subprocess.PIPE, text=True)


def start(data: Path, out: Path, *more: str) -> subprocess.Popen:
    return tool("run", "tiny", str(data), str(out), *PARTS, *more)


def figures(value: Any, path: str = "") -> dict[str, Any]:
    """Every figure of a results file by its path, but times, memory and the fingerprints of bases (whose last bits differ)."""
    if isinstance(value, dict):
        parts = [(key, part) for key, part in value.items() if key not in ("seconds", "step_ms", "peak_gb", "base")]
    elif isinstance(value, list):
        parts = list(enumerate(value))
    else:
        return {path: value}
    return {k: v for key, part in parts for k, v in figures(part, f"{path}/{key}").items()}


@pytest.fixture(scope="module")
def results(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole")
    process = start(data, out)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0 and "done in" in said
    return out


def test_results_have_every_measure(results: Path) -> None:
    stored = read_results(results / "results.json")
    assert set(stored["arms"]) == {"joint4-mtpd.s0", "joint4-mtpd-loop8.s0", "base.s0", "frozen-ce-own.s0"}
    entry = stored["arms"]["joint4-mtpd-loop8.s0"]
    for kind in ("greedy", "sampled"):
        assert len(entry[kind]["sets"]) == 7 and entry[kind]["domains"].keys() == {"text", "pair"}
        assert len(entry[kind]["all"]["car"]) == 8 and 0 < entry[kind]["all"]["distinct4"] <= 1
    assert entry["train"]["step_ms"] > 0 and entry["main"]["all"]["bits_per_byte"] > 0 and entry["main"].keys() >= {"text"}
    assert 0 < entry["main"]["all"]["entropy"] < math.log(320) and 0 <= entry["main"]["all"]["accuracy"] <= 1
    assert entry["base"] == stored["arms"]["joint4-mtpd.s0"]["base"] != stored["arms"]["base.s0"]["base"]


def test_checkpoints_load(results: Path) -> None:
    from mtpd_mlx.model.load_save import load_checkpoint

    base, heads, _ = load_checkpoint(results / "arms" / "joint4-mtpd-loop8.s0")
    assert heads.num_heads == 8 and base.vocab_size == 320


def test_killed_and_continued_gives_the_same(data: Path, results: Path, tmp_path: Path) -> None:
    for wait_for in ("joint4-mtpd.s0 4/6", "frozen-ce-own.s0 2/4"):  # in the middle of two trainings
        process = start(data, tmp_path)
        assert process.stdout is not None
        while wait_for not in process.stdout.readline():
            assert process.poll() is None
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    begun = time.perf_counter()
    timed = start(data, tmp_path, "--seconds", "0")
    assert "call again" in timed.communicate(timeout=60)[0] and time.perf_counter() - begun < 60
    process = start(data, tmp_path, "--shared")
    process.communicate(timeout=120)
    assert process.returncode == 0
    continued, whole = (read_results(folder / "results.json") for folder in (tmp_path, results))
    assert continued["arms"]["frozen-ce-own.s0"]["train"]["step_ms"] is None  # a time that other programs share is none
    got, wanted = figures(continued["arms"]), figures(whole["arms"])
    assert got.keys() == wanted.keys()
    for path, value in wanted.items():
        last_digit = 1e-3 if "/train/" in path else 1e-4  # files round figures of training to four digits
        assert got[path] == (pytest.approx(value, rel=last_digit) if isinstance(value, float) else value), path


def test_another_setting_is_refused(data: Path, results: Path) -> None:
    process = start(data, results, "--set", "joint_steps=7")
    assert process.wait(60) == 2


def test_report_of_the_results(results: Path, tmp_path: Path) -> None:
    folder = tmp_path / "results"
    folder.mkdir()
    (folder / "toy.json").write_text((results / "results.json").read_text())
    shared = json.loads((results / "results.json").read_text())
    for arm in shared["arms"].values():
        arm["train"]["step_ms"] = None
    (folder / "shared.json").write_text(json.dumps(shared))
    assert tool("report", str(folder)).wait(60) == 0
    page, summary = (tmp_path / "results.md").read_text(), json.loads((folder / "summary.json").read_text())
    own = (folder / "toy.md").read_text()
    assert "not measured" in page and "results/toy.md" in page
    assert "joint4-mtpd-loop8" in own and "](toy-loops.svg)" in own and (folder / "toy-loops.svg").exists()
    assert len(summary["toy"]["car"]["joint4-mtpd.s0"]) == 8 and summary["toy"]["costs"]["base.s0"]["step_ms"] > 0
    assert summary["shared"]["costs"]["base.s0"]["seconds"] is None
    before = page
    assert tool("report", str(folder)).wait(60) == 0 and (tmp_path / "results.md").read_text() == before
