"""What is kept of a run: --keep tau and --keep loss; never what is not finite."""

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.runs import logged, one_line, train_args

from mtpd_mlx.cli import main
from mtpd_mlx.train import loop
from mtpd_mlx.train.loop import Evaluation

NAN = float("nan")
# Of validations after 0, 2, 4 and 6 steps: main loss, loss of the heads, tau.
FIGURES = [(3.0, 9.0, 1.2), (2.0, 8.0, 1.1), (2.5, 5.0, 1.5), (2.2, 6.0, 1.6)]


def scripted(figures: list[tuple[float, float, float]], monkeypatch: pytest.MonkeyPatch) -> None:
    evaluations = iter(Evaluation(main, [heads / 2, heads / 2], [tau - 1, 0.0]) for main, heads, tau in figures)
    monkeypatch.setattr(loop, "evaluate", lambda *arguments: next(evaluations))


def kept(out: Path) -> int:
    return json.loads((out / "mtp_config.json").read_text())["eval"]["iteration"]


@pytest.mark.parametrize(
    ("mode", "keep", "step"),
    [
        ("heads", None, 6),
        ("heads", "tau", 6),
        ("heads", "loss", 4),
        ("joint", None, 2),
        ("joint", "loss", 2),
        ("joint", "tau", 6),
        ("lora", None, 2),
        ("lora", "tau", 6),
    ],
)
def test_keep(
    mode: str, keep: str | None, step: int, tiny_base: Path, text_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(FIGURES, monkeypatch)
    how = ["--train", mode, *(["--keep", keep] if keep else [])] + (["--num-layers", "1"] if mode == "lora" else [])
    assert main(train_args(tiny_base, text_data, tmp_path / "out", *how, steps_per_eval=2)) == 0
    assert kept(tmp_path / "out") == step


def test_keep_of_an_interrupted_run(
    tiny_base: Path,
    text_data: Path,
    tmp_path: Path,
    stop_at: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    out = tmp_path / "out"
    scripted(FIGURES, monkeypatch)
    stop_at(6)
    assert main(train_args(tiny_base, text_data, out, "--train", "joint", "--keep", "tau", steps_per_eval=2)) == 130
    assert kept(out) == 4
    monkeypatch.undo()
    assert main(["train", "--resume", "--out", str(out), "--keep", "loss"]) == 1
    one_line(capsys, "--resume: keep is 'loss', the interrupted run has 'tau'")
    scripted(FIGURES[3:], monkeypatch)
    assert main(["train", "--resume", "--out", str(out)]) == 0
    assert kept(out) == 6


def test_nothing_better(
    tiny_base: Path, text_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    for keep, words in (("tau", "(tau 1.2)"), ("loss", "(the heads' loss 9)")):
        scripted([FIGURES[0]] * 4, monkeypatch)
        assert main(train_args(tiny_base, text_data, tmp_path / keep, "--keep", keep, steps_per_eval=2)) == 3
        assert words in capsys.readouterr().out


@pytest.mark.parametrize("mode", ["heads", "joint"])
@pytest.mark.parametrize("broken", [(NAN, 5.0, 3.0), (1.0, NAN, 3.0), (1.0, float("inf"), 3.0)])
def test_a_later_validation_that_is_not_finite_is_not_kept(
    mode: str,
    broken: tuple[float, float, float],
    tiny_base: Path,
    text_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "out"
    scripted([*FIGURES[:2], broken, FIGURES[3]], monkeypatch)
    assert main(train_args(tiny_base, text_data, out, "--train", mode, "--keep", "tau", steps_per_eval=2)) == 0
    assert kept(out) == 6 and [r["iter"] for r in logged(out) if r.get("saved")] == [6]


def test_heads_that_are_not_finite_are_refused(
    tiny_base: Path, text_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    from tiny import write_checkpoint

    from mtpd_mlx.model.runtime import mx

    heads = write_checkpoint(tmp_path / "heads", tiny_base, 2)
    weights = dict(mx.load(str(heads / "heads.safetensors")))
    weights["heads.1.eh_proj.weight"] = weights["heads.1.eh_proj.weight"] * NAN
    mx.save_safetensors(str(heads / "heads.safetensors"), weights)
    assert main(train_args(tiny_base, text_data, tmp_path / "out", "--init-heads", str(heads))) == 1
    one_line(capsys, "the logits of trained head 2 are not finite on the validation rows (loss nan)", "Nothing was trained")
    assert not list((tmp_path / "out").rglob("*.safetensors"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--loss", "kl", "--kl-start", "0.5"], "--kl-start: got 0.5 with --loss kl"),
        (["--kl-reaches", "heads"], "--kl-reaches heads: expected --train joint or lora"),
        (["--train", "joint", "--loss", "tv", "--no-detach-teacher"], "--no-detach-teacher: expected"),
        (["--alpha", "1", "2", "3"], "--alpha: got 3 values, expected 1 or 2"),
        (["--beta", "1", "2", "3"], "--beta: got 3 values, expected 1 or 2"),
    ],
)
def test_losses_that_do_not_go_together_are_refused_before_a_base_is_loaded(
    options: list[str], words: str, text_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main(train_args(tmp_path / "no base here", text_data, tmp_path / "out", *options)) == 1
    one_line(capsys, words)
