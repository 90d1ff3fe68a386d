"""tools/real_model: what is held out, and the whole recipe at its smallest on a tiny base, stopped and taken up."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from mtpd_mlx.checkpoints.format import read_config
from tools.paths import ROOT, python_path
from tools.real_model import __main__ as recipe
from tools.real_model.held_out import HeldOut, words
from tools.real_model.pipeline import DONE, Stage, StageFailed, run_stages, state_of
from tools.real_model.prompts import choose_prompts
from tools.real_model.settings import SIZES

THIRTEEN = "one two three four five six seven eight nine ten eleven twelve thirteen"


@pytest.mark.parametrize(
    ("prompt", "held"),
    [
        ("How MANY apples, are left?", True),  # the text itself, but for case and punctuation
        ("Tell me: how many apples are left? Think.", True),  # a short one, whole
        ("how many apples are", False),
        (f"zero {THIRTEEN} fourteen", True),
        (f"zero {THIRTEEN.rpartition(' ')[0]} fourteen", False),  # twelve words in a row
        ("yes", True),
        ("yes or no", False),  # too short a text to look for inside others
        ("", False),
    ],
)
def test_what_overlaps_with_evaluation(prompt: str, held: bool, tmp_path: Path) -> None:
    file, text = tmp_path / "eval.jsonl", tmp_path / "eval.txt"
    row = {"id": 3, "turns": ["How many apples are left?"], "more": {"deep": [f"before {THIRTEEN} after"]}}
    file.write_text(json.dumps(row) + "\n\n")
    text.write_text("Yes.\n\n")
    assert HeldOut.of_files([file, text]).holds(prompt) is held


def test_a_line_that_is_no_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "eval.jsonl").write_text('{"a": "b"}\n{"a":\n')
    with pytest.raises(ValueError, match=r"eval\.jsonl:2: not JSON"):
        HeldOut.of_files([tmp_path / "eval.jsonl"])


def test_words_of_other_scripts_are_words() -> None:
    assert words("Größe_und Maß, 東京!") == ["größe", "und", "maß", "東京"]


def write_prompts(file: Path, count: int = 40) -> Path:
    draw = random.Random(3)
    texts = ["".join(draw.choices("abcdefgh ", k=draw.randint(4, 20))).strip() or "a" for _ in range(count)]
    file.write_text("".join(json.dumps({"prompt": t}) + "\n" for t in texts))
    return file


def test_prompts_are_dealt_out(tiny_base: Path, tmp_path: Path) -> None:
    prompts = write_prompts(tmp_path / "prompts.jsonl")
    held, first = "what is the answer to this question", prompts.read_text().splitlines()[0]
    with prompts.open("a") as f:
        f.write("".join(json.dumps({"prompt": t}) + "\n" for t in (held, "x" * 200)) + first + "\n")
    (tmp_path / "sets.jsonl").write_text(json.dumps({"prompt": held, "reference": ["no text"]}) + "\n{}\n")
    size = SIZES["tiny"]
    counts = choose_prompts([prompts], [tmp_path / "sets.jsonl"], tiny_base, size, tmp_path / "out")
    assert counts["left_out"] == {"overlaps with evaluation": 1, "over 96 tokens": 1, "double": 1}
    assert counts["prompts"] == 32 and counts["parts"] == {"greedy": 32, "t07": 16} and counts["eval"] == {"sets": 1}
    assert json.loads((tmp_path / "out" / "eval" / "sets.jsonl").read_text()) == {"prompt": held}
    with pytest.raises(ValueError, match=r"got 2 prompts \(left out: none\), expected at least 16"):
        prompts.write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
        choose_prompts([prompts], [], tiny_base, size, tmp_path / "few")


def test_a_stage_runs_once_and_again_where_it_failed(tmp_path: Path) -> None:
    said: list[str] = []
    flag = tmp_path / "flag"
    command = (sys.executable, "-c", f"import pathlib, sys; sys.exit(0 if pathlib.Path({str(flag)!r}).exists() else 3)")
    made: list[int] = []
    stages = [Stage("first", work=lambda: made.append(1)), Stage("second", command)]
    with pytest.raises(StageFailed, match="stage second: ended with status 3") as failed:
        run_stages(stages, tmp_path, said.append)
    assert failed.value.status == 3 and list(json.loads((tmp_path / DONE).read_text())) == ["first"]
    flag.touch()
    run_stages(stages, tmp_path, said.append)
    assert made == [1] and list(json.loads((tmp_path / DONE).read_text())) == ["first", "second"]
    with pytest.raises(ValueError, match="stage first was done with other settings"):
        run_stages([Stage("first", identity={"size": 2})], tmp_path, said.append)


def test_how_an_interrupted_command_is_called(tmp_path: Path) -> None:
    assert state_of(None) == state_of(tmp_path / "none") == ()
    for name in ("part.jsonl", "resume-000004", "stages/8/resume-2"):
        out = tmp_path / name.replace("/", "-")
        (out / name).parent.mkdir(parents=True)
        (out / name).touch()
        assert state_of(out) == ("--resume",)
    (tmp_path / "other").mkdir()
    assert state_of(tmp_path / "other") == ("--overwrite",)


def test_a_command_that_ended_is_not_run_again(tmp_path: Path) -> None:
    """We may be killed between its end and our writing that down."""
    out = tmp_path / "out"
    stages = [Stage("train", (sys.executable, "-c", "raise SystemExit(5)"), out=out)]
    out.mkdir()
    (out / "train_options.json").write_text('{"finished": true}')
    with pytest.raises(StageFailed):  # it kept no heads
        run_stages(stages, tmp_path, lambda line: None)
    (out / "mtp_config.json").touch()
    run_stages(stages, tmp_path, lambda line: None)
    assert list(finished(tmp_path)) == ["train"]
    own, other = tmp_path / "own", tmp_path / "other"
    own.mkdir()
    (own / "train.jsonl").touch()
    run_stages([Stage("own", stages[0].command, out=own)], other_place(other), lambda line: None)
    (own / "part.jsonl").touch()
    with pytest.raises(StageFailed, match="status 5"):
        run_stages([Stage("own", stages[0].command, out=own)], other_place(tmp_path / "third"), lambda line: None)


def other_place(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_bad_input_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["real_model", "--prompts", "none.jsonl", "--out", str(tmp_path / "out")])
    assert recipe.main() == 1
    assert capsys.readouterr().err == "real_model: error: none.jsonl: no such file\n"


def finished(out: Path) -> dict[str, Any]:
    return json.loads((out / DONE).read_text()) if (out / DONE).is_file() else {}


@pytest.mark.slow
def test_the_whole_recipe_stopped_and_taken_up(tiny_base: Path, tmp_path: Path) -> None:
    out, prompts = tmp_path / "run", write_prompts(tmp_path / "prompts.jsonl")
    (tmp_path / "sets.jsonl").write_text('{"prompt": "tell me a story now please"}\n' * 2)
    command = [sys.executable, "-m", "tools.real_model", "--size", "tiny", "--model", str(tiny_base)]
    command += ["--prompts", str(prompts), "--eval", str(tmp_path / "sets.jsonl"), "--out", str(out)]
    stops = ("own-greedy", "train-1", "extend")
    for stop in stops:  # SIGTERM as that stage begins
        process = subprocess.Popen(command, cwd=ROOT, env=os.environ | python_path(), stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        while (line := process.stdout.readline()) and line.strip() != f"{stop} ...":
            pass
        time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        assert process.wait() in (143, -signal.SIGTERM) and stop not in finished(out)
    before = finished(out)
    done = subprocess.run(command, cwd=ROOT, env=os.environ | python_path(), capture_output=True, text=True, check=True)
    stages = [
        "prompts",
        "own-greedy",
        "own-t07",
        "train-1",
        "train",
        "quantise",
        "extend",
        "measure",
        "measure-8",
    ]
    assert list(finished(out)) == stages and f"heads: {out}" in done.stdout
    assert {name: finished(out)[name] for name in before} == before
    assert [read_config(out / name).num_heads for name in ("heads", "heads-8bit", "heads-8")] == [4, 4, 8]
    assert read_config(out / "heads-8bit").quantization == {"group_size": 64, "bits": 8}
    assert json.loads((out / "measure-8.json").read_text())["sets"]["sets"]["prompts"] == 2
