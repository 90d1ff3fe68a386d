"""Runs end to end on a tiny model: resume equals no interruption, nothing is lost or overwritten, errors are one line."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from helpers.runs import assert_same_heads, assert_same_run, flags, logged, one_line, train_args

from mtpd_mlx.cli import main
from mtpd_mlx.model.load_save import load_checkpoint
from mtpd_mlx.train.loop import LOG_NAME

MORE = {"iters": 12, "max_seq_length": 32, "warmup": 2, "steps_per_eval": 4, "save_every": 3, "val_batches": 2}
MORE |= {"learning_rate": "1e-2"}


def args(base: Path, data: Path, out: Path, *extra: str) -> list[str]:
    return train_args(base, data, out, *extra, **MORE)


def test_heads_run_writes_a_loadable_checkpoint_and_not_the_base(tiny_base: Path, text_data: Path, tmp_path: Path) -> None:
    out = tmp_path / "heads"
    assert main(args(tiny_base, text_data, out)) == 0
    assert not (out / "base").exists()
    base, heads, config = load_checkpoint(out)
    assert heads.num_heads == 2 and config.record["loss"]["loss"] == "mtpd"
    after, before = (config.record["eval"][name]["head_loss"] for name in ("validation", "start"))
    assert all(a < b for a, b in zip(after, before, strict=True))
    assert {"train_sha256", "valid_sha256"} <= config.record["data"].keys()
    assert base.path is not None and base.path.resolve() == tiny_base.resolve()


@pytest.mark.parametrize(("mode", "optimizer"), [("heads", "adamw"), ("joint", "adamw"), ("heads", "muon")])
def test_interrupted_run_resumes_to_the_same_losses(
    mode: str, optimizer: str, tiny_base: Path, text_data: Path, tmp_path: Path, stop_at: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    extra = ("--train", mode, "--optimizer", optimizer, "--grad-accumulation-steps", "2")
    assert main(args(tiny_base, text_data, tmp_path / "whole", *extra)) == 0
    stop_at(8)
    out = tmp_path / "broken"
    assert main(args(tiny_base, text_data, out, *extra)) == 130
    monkeypatch.undo()
    assert main(["train", "--resume", "--out", str(out)]) == 0
    assert_same_run(tmp_path / "whole", out)
    assert_same_heads(tmp_path / "whole", out)


@pytest.mark.slow
def test_killed_process_resumes_to_the_same_losses(tiny_base: Path, text_data: Path, tmp_path: Path) -> None:
    whole, out = tmp_path / "whole", tmp_path / "killed"
    longer = ("--iters", "30")
    assert main(args(tiny_base, text_data, whole, *longer)) == 0
    command = [sys.executable, "-m", "mtpd_mlx.cli", *args(tiny_base, text_data, out, *longer)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.time() + 120
    while not list(out.glob("resume-*")) and process.poll() is None and time.time() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert main(["train", "--resume", "--out", str(out)]) == 0
    assert_same_run(whole, out)


def test_run_killed_before_its_first_resume_point_leaves_no_log(tiny_base: Path, text_data: Path, tmp_path: Path) -> None:
    out = tmp_path / "heads"
    out.mkdir()
    (out / LOG_NAME).write_text('{"iter": 1, "loss": 9.0, "main_loss": 9.0, "head_loss": []}\n')
    assert main(args(tiny_base, text_data, out)) == 0
    assert [row["iter"] for row in logged(out) if "loss" in row] == list(range(1, 13))


def test_joint_from_scratch_writes_its_base(tiny_base: Path, text_data: Path, tmp_path: Path) -> None:
    out, like = tmp_path / "joint", tmp_path / "config.json"
    scratch = [
        "train",
        "--train",
        "joint",
        "--model-config",
        str(like),
        "--tokenizer",
        str(tiny_base),
        "--data",
        str(text_data),
    ]
    quantised = {"quantization": {"bits": 4, "group_size": 32}}  # of the model that the config was taken from
    like.write_text(json.dumps(json.loads((tiny_base / "config.json").read_text()) | quantised))
    assert main([*scratch, "--out", str(out), *flags(**MORE)]) == 0
    assert "quantization" not in json.loads((out / "base" / "config.json").read_text())
    _, _, config = load_checkpoint(out)
    assert config.base.id == "./base"
    evaluation = config.record["eval"]
    assert evaluation["validation"]["main_loss"] < evaluation["start"]["main_loss"]
    assert (out / "base" / "tokenizer.json").is_file()


def test_run_that_ends_worse_replaces_nothing(
    tiny_base: Path, text_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    good, bad = tmp_path / "good", tmp_path / "bad"
    assert main(args(tiny_base, text_data, good, "--train", "joint", "--iters", "40")) == 0
    extra = ("--init-heads", str(good), "--learning-rate", "50", "--max-grad-norm", "0", "--warmup", "0")
    assert main(args(good / "base", text_data, bad, *extra)) == 3
    assert "nothing was replaced" in capsys.readouterr().out and not (bad / "heads.safetensors").exists()


def test_existing_checkpoint_is_not_overwritten(tiny_base: Path, text_data: Path, tmp_path: Path) -> None:
    out = tmp_path / "heads"
    assert main(args(tiny_base, text_data, out)) == 0
    before = (out / "heads.safetensors").read_bytes()
    assert main(args(tiny_base, text_data, out)) == 1
    assert (out / "heads.safetensors").read_bytes() == before
    assert main(args(tiny_base, text_data, out, "--overwrite", "--seed", "5")) == 0
    assert (out / "heads.safetensors").read_bytes() != before


def test_a_folder_where_the_trained_base_would_go_is_not_replaced_unasked(
    tiny_base: Path, text_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    base = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    before = (base / "model.safetensors").read_bytes()
    assert main(args(base, text_data, tmp_path, "--train", "joint")) == 1
    one_line(capsys, "holds a folder 'base', where what is trained goes")
    assert (base / "model.safetensors").read_bytes() == before


def test_bad_input_is_one_line(tiny_base: Path, text_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    from tiny import write_tokenizer

    out = tmp_path / "out"
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "train.jsonl").write_text("")
    assert main(args(tiny_base, empty, out)) == 1
    one_line(capsys, "train.jsonl", "empty")
    (empty / "train.jsonl").write_text('{"text": "a"}\n{"text": 3}\n')
    assert main(args(tiny_base, empty, out)) == 1
    one_line(capsys, "train.jsonl:2", "expected str")
    assert main(args(tiny_base, tmp_path / "none", out)) == 1
    one_line(capsys, "no such file or folder")
    blocked = tmp_path / "file"
    blocked.write_text("x")
    assert main(args(tiny_base, text_data, blocked)) == 1
    one_line(capsys, "not a folder")
    assert main(args(tiny_base, text_data, blocked / "below")) == 1
    one_line(capsys, str(blocked))
    write_tokenizer(tmp_path / "large", 120)
    assert main(args(tiny_base, text_data, out, "--tokenizer", str(tmp_path / "large"))) == 1
    one_line(capsys, "120 tokens", "97")
    (tmp_path / "list.json").write_text("[]")
    scratch = ["--train", "joint", "--model-config", str(tmp_path / "list.json"), "--tokenizer", str(tiny_base)]
    assert main(["train", *scratch, "--data", str(text_data), "--out", str(out)]) == 1
    one_line(capsys, "list.json: got list, expected an object")
    (tmp_path / "c.yaml").write_text("learning_rat: 1\n")
    assert main(args(tiny_base, text_data, out, "-c", str(tmp_path / "c.yaml"))) == 1
    one_line(capsys, "learning_rat", "did you mean 'learning_rate'")


def test_yaml_gives_options_and_flags_override(tmp_path: Path) -> None:
    from mtpd_mlx.options.schema import read_yaml
    from mtpd_mlx.options.train import TrainOptions

    file = tmp_path / "c.yaml"
    file.write_text("learning_rate: 2e-3\niters: 7\nalpha: [0.1, 0.2]\npack: false\n")
    options = TrainOptions.build(read_yaml(file), {"iters": 9})
    assert options.optim.learning_rate == 2e-3 and options.optim.iters == 9
    assert options.loss.alpha == (0.1, 0.2) and options.data.pack is False


@pytest.mark.parametrize("wrong", ["data", "out"])
def test_wrong_places_are_found_before_the_base_is_loaded(
    wrong: str, text_data: Path, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    from mtpd_mlx.train import setup as ingredients

    monkeypatch.setattr(ingredients, "gather", lambda options: pytest.fail("loaded"))
    out = tmp_path / "out"
    if wrong == "out":
        out.write_text("a file")
    data = tmp_path / "nowhere" if wrong == "data" else text_data
    assert main(args(tiny_base, data, out)) == 1
    one_line(capsys, "no such file or folder" if wrong == "data" else "exists and is not a folder")
