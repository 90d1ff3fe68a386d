"""What lies in the folder of a run: good heads outlive whatever goes wrong; interrupted runs go on, others are refused."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.runs import assert_same_heads, assert_same_run, error_line, flags, how_to_go_on, logged, train_args
from tiny import write_base, write_checkpoint

from mtpd_mlx.cli import main
from mtpd_mlx.model.load_save import load_checkpoint
from mtpd_mlx.train.folder import OPTIONS_NAME, read_run
from mtpd_mlx.train.loop import LOG_NAME
from mtpd_mlx.train.step import Stepper

Stop = Callable[[int], None]


@pytest.fixture
def good(tiny_base: Path, text_data: Path, tmp_path: Path) -> Path:
    """A finished run. The noise makes sure that any other heads would be other bytes."""
    folder = write_checkpoint(tmp_path / "good", tiny_base, num_heads=2, noise=0.1)
    (folder / LOG_NAME).write_text('{"iter": 1}\n')
    return folder


def heads_of(folder: Path) -> tuple[bytes, bytes]:
    return (folder / "heads.safetensors").read_bytes(), (folder / "mtp_config.json").read_bytes()


@pytest.mark.parametrize(
    ("command", "extra", "words"),
    [
        ("train", ("--report-to", "wandb"), "--report-to wandb"),
        ("refit", ("--report-to", "wandb"), "--report-to wandb"),
        ("train", ("--adam-betas", "0.9"), "--adam-betas: got 1 values"),
        ("train", ("--alpha", "1", "2", "3"), "alpha: got 3 values"),
        ("refit", ("--alpha", "1", "2", "3"), "alpha: got 3 values"),
        ("refit", ("--max-seq-length", "10000"), "--max-seq-length: got 10000"),
        ("train", ("--val-batches", "-2"), "--val-batches: got -2"),
        ("refit", ("--seed", "-1"), "--seed: got -1"),
    ],
)
def test_a_failing_start_leaves_old_heads(
    command: str, extra: tuple[str, ...], words: str, good: Path, tiny_base: Path, text_data: Path, tmp_path: Path, capsys: Any
) -> None:
    before = heads_of(good)
    arguments = train_args(tiny_base, text_data, good, "--overwrite", *extra)
    if command == "refit":
        other = write_checkpoint(tmp_path / "other", tiny_base, num_heads=2)
        arguments = ["refit", str(other), *train_args(tiny_base, text_data, good, "--overwrite", *extra, num_heads=None)[1:]]
    assert main(arguments) == 1
    assert words in error_line(capsys)
    assert heads_of(good) == before and not (good / OPTIONS_NAME).exists()
    load_checkpoint(good)


def test_a_run_that_does_not_improve_leaves_old_heads(good: Path, tiny_base: Path, text_data: Path, capsys: Any) -> None:
    before = heads_of(good)
    assert main(train_args(tiny_base, text_data, good, "--overwrite", "--learning-rate", "0")) == 3
    assert "nothing was replaced" in capsys.readouterr().out and heads_of(good) == before


def test_interrupted_before_the_first_save(good: Path, tiny_base: Path, text_data: Path, stop_at: Stop, capsys: Any) -> None:
    """Old heads stay; the run goes on from the very beginning and then replaces them."""
    before = heads_of(good)
    stop_at(1)
    assert main(train_args(tiny_base, text_data, good, "--overwrite", "--learning-rate", "1e-2", "--loss", "kl")) == 130
    resume = how_to_go_on(capsys)
    assert heads_of(good) == before and (good / "resume-0").is_dir()
    assert main(resume) == 0
    assert heads_of(good) != before
    assert [r["iter"] for r in logged(good) if "valid" in r] == [0, 3, 6]


def test_a_finished_run_keeps_no_resume_point(tiny_base: Path, text_data: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "out"
    assert main(train_args(tiny_base, text_data, out)) == 0
    assert {p.name for p in out.iterdir()} == {"heads.safetensors", "mtp_config.json", OPTIONS_NAME, LOG_NAME}
    assert read_run(out).finished
    assert main(["train", "--resume", "--out", str(out)]) == 1
    assert "is finished; begin another" in error_line(capsys)


def test_the_replaced_heads_own_base_goes_with_them(tiny_base: Path, text_data: Path, tmp_path: Path) -> None:
    out, better = tmp_path / "out", ("--learning-rate", "1e-2", "--loss", "kl")
    (tmp_path / "out" / "base").mkdir(parents=True)
    assert main(train_args(tiny_base, text_data, out, *better)) == 0
    assert (out / "base").is_dir(), "somebody else's folder"
    (out / "base").rmdir()
    assert main(train_args(tiny_base, text_data, out, "--train", "joint", "--overwrite", *better)) == 0
    assert (out / "base" / "model.safetensors").is_file()
    assert main(train_args(out / "base", text_data, out, "--overwrite", *better)) == 0
    assert load_checkpoint(out)[2].base.id == "./base", "still needed"
    assert main(train_args(tiny_base, text_data, out, "--overwrite", *better)) == 0
    assert (out / "base").is_dir(), "a model that was named as any other"
    assert main(train_args(tiny_base, text_data, out, "--train", "joint", "--overwrite", *better)) == 0
    assert main(train_args(tiny_base, text_data, out, "--overwrite", *better)) == 0
    assert not (out / "base").exists()


@pytest.mark.parametrize("changed", ["base", "train", "valid", "nothing"])
def test_resume_wants_the_same_base_and_rows(
    changed: str, tiny_base: Path, text_data: Path, tmp_path: Path, stop_at: Stop, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    out, base = tmp_path / "out", Path(shutil.copytree(tiny_base, tmp_path / "base"))
    stop_at(4)
    assert main(train_args(base, text_data, out)) == 130
    monkeypatch.undo()
    if changed == "base":
        other = write_base(tmp_path / "other", seed=8)
        shutil.copyfile(other / "model.safetensors", base / "model.safetensors")
    elif changed != "nothing":
        with (text_data / f"{changed}.jsonl").open("a") as f:
            f.write('{"text": "one more"}\n')
    capsys.readouterr()
    code = main(["train", "--resume", "--out", str(out)])
    if changed == "nothing":
        assert code == 0
        return
    assert code == 1
    assert ("base weights" if changed == "base" else f"{changed} rows") in error_line(capsys)
    assert (out / "resume-3").is_dir()


def test_refit_says_how_to_go_on_and_refuses_other_options(
    tiny_base: Path, text_data: Path, tmp_path: Path, stop_at: Stop, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    checkpoint, out = write_checkpoint(tmp_path / "old", tiny_base, num_heads=2), tmp_path / "new"
    arguments = ["refit", str(checkpoint), *train_args(tiny_base, text_data, out, num_heads=None)[1:]]
    stop_at(4)
    assert main(arguments) == 130
    monkeypatch.undo()
    resume = how_to_go_on(capsys)
    assert main([*resume, "--learning-rate", "0.5"]) == 1
    assert "learning_rate is 0.5" in error_line(capsys)
    other = write_checkpoint(tmp_path / "other", tiny_base, num_heads=2)
    assert main(["refit", str(other), *resume[2:]]) == 1
    assert "adapts" in error_line(capsys)
    assert main(resume) == 0
    assert "tau" in capsys.readouterr().out


def test_config_files_are_compared_on_resume(
    tiny_base: Path, text_data: Path, tmp_path: Path, stop_at: Stop, capsys: Any
) -> None:
    (tmp_path / "c.yaml").write_text("learning_rate: 2e-3\n")
    stop_at(2)
    out = tmp_path / "out"
    assert main([*train_args(tiny_base, text_data, out), "-c", str(tmp_path / "c.yaml")]) == 130
    capsys.readouterr()
    for text, given in (("learning_rate: 3e-3\n", ["--resume"]), ("learning_rate: 3e-3\nresume: true\n", [])):
        (tmp_path / "c.yaml").write_text(text)
        assert main(["train", *given, "--out", str(out), "-c", str(tmp_path / "c.yaml")]) == 1
        assert "learning_rate is 0.003, the interrupted run has 0.002" in error_line(capsys)


@pytest.mark.parametrize("where", ["step", "validation", "first validation"])
def test_a_fault_of_mlx_leaves_a_resume_point(
    where: str, tiny_base: Path, text_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mtpd_mlx.options.train import TrainOptions
    from mtpd_mlx.train.run import train
    from mtpd_mlx.train.setup import gather

    name, number = ("step", 4) if where == "step" else ("evaluate", 2 if where == "validation" else 1)
    original, calls, out = getattr(Stepper, name), [0], tmp_path / "out"

    def failing(self: Stepper, *args: Any) -> Any:
        calls[0] += 1
        if calls[0] == number:
            raise RuntimeError("[malloc] Unable to allocate 7 bytes.\nmore")
        return original(self, *args)

    monkeypatch.setattr(Stepper, name, failing)
    values = {"model": str(tiny_base), "data": [str(text_data)], "out": str(out), "num_heads": 2, "iters": 6, "warmup": 0}
    values |= {"batch_size": 2, "max_seq_length": 24, "val_batches": 1, "steps_per_eval": 3, "save_every": 2}
    options = TrainOptions.build(values, {})
    expected = {"step": "step 2", "validation": "step 3", "first validation": "no resume point"}[where]
    with pytest.raises(RuntimeError, match=rf"Unable to allocate 7 bytes.; .*{expected}") as error:
        train(options, gather(options), lambda record: None)
    assert "\n" not in str(error.value)
    monkeypatch.undo()
    if where != "first validation":
        assert main(["train", "--resume", "--out", str(out)]) in (0, 3)
        assert [r["iter"] for r in logged(out) if "valid" in r] == [0, 3, 6]


@pytest.mark.slow
def test_interrupts_by_signal_lose_nothing(tiny_base: Path, text_data: Path, tmp_path: Path) -> None:
    """SIGINT at any moment: the step that runs is finished, and the losses are those of an undisturbed run."""
    whole, out, longer = tmp_path / "whole", tmp_path / "out", ("--iters", "40", "--steps-per-eval", "5", "--save-every", "0")
    assert main(train_args(tiny_base, text_data, whole, *longer)) in (0, 3)
    command, stops = train_args(tiny_base, text_data, out, *longer), 0
    for _ in range(2):
        process = subprocess.Popen(
            [sys.executable, "-m", "mtpd_mlx.cli", *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
        )
        assert process.stderr is not None
        while (line := process.stderr.readline()) and not ("tok/s" in line or "step/s, main" in line):
            pass
        os.kill(process.pid, signal.SIGINT)
        stdout, stderr = process.communicate(timeout=120)
        if process.returncode in (0, 3):
            break
        assert process.returncode == 130 and "stopping after this step" in stderr and "Traceback" not in stderr
        stops += 1
        hint = next(line for line in stdout.splitlines() if line.startswith("interrupted"))
        command = hint.split("mtpd ", 1)[1].split()
    else:
        assert main(command) in (0, 3)
    assert stops >= 1
    assert_same_run(whole, out, atol=1e-5)


def test_interrupted_before_anything_gives_no_advice(
    tiny_base: Path, text_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    from mtpd_mlx.train import run as training

    def interrupted(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "load_data", interrupted)
    assert main(train_args(tiny_base, text_data, tmp_path / "out")) == 130
    assert "--resume" not in capsys.readouterr().out


def test_not_finite_gradients_end_with_advice_that_works(tiny_base: Path, text_data: Path, tmp_path: Path, capsys: Any) -> None:
    """A rate that ruins everything: the next steps have no finite gradient."""
    out = tmp_path / "out"
    extra = ("--learning-rate", "1e30", "--max-grad-norm", "0", "--max-skipped-steps", "2", "--iters", "40", "--warmup", "5")
    assert main(train_args(tiny_base, text_data, out, "--steps-per-eval", "1", *extra)) == 1
    line = error_line(capsys)
    assert "--resume goes on" in line and "begin anew" in line and "Lower" not in line
    assert main(train_args(tiny_base, text_data, out, "--overwrite", "--learning-rate", "1e-3")) in (0, 3)


def extend(checkpoint: Path, to: int, data: Path, out: Path, *extra: str) -> int:
    fixed = flags(num_heads=None)
    return main(["extend", str(checkpoint), "--to", str(to), "--data", str(data), "--out", str(out), *fixed, *extra])


def test_extending_goes_on_in_its_second_stage(
    tiny_base: Path, text_data: Path, tmp_path: Path, good: Path, stop_at: Stop, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """--overwrite over good heads, interrupted in the second stage; the first one is not trained again."""
    checkpoint, before = write_checkpoint(tmp_path / "two", tiny_base, num_heads=2), heads_of(good)
    assert extend(checkpoint, 5, text_data, good) == 1
    assert "holds a checkpoint already" in error_line(capsys) and not (good / "stages").exists()
    stop_at(10)
    assert extend(checkpoint, 5, text_data, good, "--overwrite") == 130
    assert read_run(good / "stages" / "4").finished and heads_of(good) != before  # copies are a result
    resume = how_to_go_on(capsys)
    monkeypatch.undo()
    assert main([*resume, "--learning-rate", "0.5"]) == 1
    assert "learning_rate is 0.5" in error_line(capsys)
    steps, step = [], Stepper.step
    monkeypatch.setattr(Stepper, "step", lambda self, batches: steps.append(1) or step(self, batches))
    assert main(resume) == 0
    assert len(steps) == 3 and not list(good.rglob("resume-*"))
    said = capsys.readouterr().out
    assert "4 heads" in said and "5 heads" in said
    whole = tmp_path / "whole"
    assert extend(checkpoint, 5, text_data, whole) == 0
    assert_same_heads(whole, good)


def test_an_extension_of_changed_heads_is_not_resumed(
    tiny_base: Path, text_data: Path, tmp_path: Path, stop_at: Stop, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    checkpoint, out = write_checkpoint(tmp_path / "two", tiny_base, num_heads=2), tmp_path / "out"
    stop_at(4)
    assert extend(checkpoint, 4, text_data, out) == 130
    monkeypatch.undo()
    write_checkpoint(tmp_path / "two", tiny_base, num_heads=2, noise=0.1)
    capsys.readouterr()
    assert extend(checkpoint, 4, text_data, out, "--resume") == 1
    assert "heads to extend" in error_line(capsys)


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (("--train", "joint"), "--train joint: not for mtpd extend"),
        (("--model-config", "x.json"), "--model-config x.json: not for mtpd extend"),
        (("--to", "2"), "expected more than"),
    ],
)
def test_what_an_extension_does_not_do(
    extra: tuple[str, ...], words: str, good: Path, text_data: Path, tmp_path: Path, capsys: Any
) -> None:
    assert extend(good, 4, text_data, tmp_path / "out", *extra) == 1
    assert words in error_line(capsys)
