"""Options that would have no effect, or exclude each other, are refused in one line before anything is loaded."""

import importlib
from pathlib import Path
from typing import Any

import pytest

PROGRAMS = {"mtpd": "mtpd_mlx", "mtpd-onnx": "mtpd_onnx"}


def said(typed: str, capsys: pytest.CaptureFixture[str]) -> str:
    """The line with which a command is refused."""
    program, *arguments = typed.split(" ")
    assert importlib.import_module(f"{PROGRAMS[program]}.cli").main(arguments) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{program} {arguments[0]}: error: ")
    return line


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("mtpd generate x -p a --plain --num-draft-tokens 2", "--num-draft-tokens: not with --plain"),
        ("mtpd generate x -p a --plain --exact", "--exact: not with --plain"),
        ("mtpd generate x -p a --num-draft-tokens 0 --exact", "--exact: not with --num-draft-tokens 0"),
        ("mtpd generate x -p a --top-p .9", "--top-p: expected a --temp above 0"),
        ("mtpd generate x -p a --xtc-probability .9", "--xtc-probability: expected a --temp above 0"),
        ("mtpd generate x -p a --temp 1 --xtc-threshold .2", "--xtc-threshold: expected an --xtc-probability"),
        ("mtpd generate x -p a --repetition-context-size 9", "--repetition-context-size: expected a --repetition-penalty"),
        ("mtpd generate x -p a --kv-group-size 32", "--kv-group-size: expected --kv-bits"),
        ("mtpd bench x --prompts p --quantized-kv-start 1", "--quantized-kv-start: expected --kv-bits"),
        ("mtpd bench x --prompts p --min-p .1", "--min-p: expected a --temp above 0"),
        ("mtpd chat x --plain --num-draft-tokens 2", "--num-draft-tokens: not with --plain"),
        ("mtpd chat x --plain --show-drafts", "--show-drafts: not with --plain"),
        ("mtpd chat x --num-draft-tokens 0 --show-drafts", "--show-drafts: not with --num-draft-tokens 0"),
        ("mtpd verify x --prompts p --greedy-only --top-k 3", "--top-k: not with --greedy-only"),
        ("mtpd verify x --prompts p --greedy-only --seed 3", "--seed: not with --greedy-only"),
        ("mtpd verify x --prompts p --exact --num-draft-tokens 0", "--exact: not with --num-draft-tokens 0"),
        ("mtpd export x --out o --group-size 32", "--group-size: expected --precision int4 or int8"),
        ("mtpd-onnx generate x -p a --plain --num-draft-tokens 2", "--num-draft-tokens: not with --plain"),
        ("mtpd-onnx generate x -p a --top-k 5", "--top-k: expected a --temp above 0"),
        ("mtpd-onnx generate x -p a --provider cpu --no-cuda-graph", "--no-cuda-graph: not with --provider cpu"),
        ("mtpd-onnx chat x --plain --show-drafts", "--show-drafts: not with --plain"),
        ("mtpd-onnx verify x --prompts p --greedy-only --temp .5", "--temp: not with --greedy-only"),
        ("mtpd extend x --to 8 --train-free --iters 3", "--iters: not with --train-free"),
        ("mtpd extend x --to 8 --train-free --data d", "--data: not with --train-free"),
        ("mtpd extend x --to 8 --train-free --adapter-path d", "--adapter-path: not with --train-free"),
        ("mtpd extend x --to 8 --train-free --resume", "--resume: not with --train-free"),
        ("mtpd extend x --to 8 --train-free -c nowhere.yaml", "cannot read config nowhere.yaml"),
        ("mtpd train --model m --loss kl --alpha .1", "--alpha: expected --loss mtpd or ce with it, got kl"),
        ("mtpd train --model m --eta 2", "--eta: expected --loss lk with it, got mtpd"),
        ("mtpd train --model m --loss tv --kl-direction reverse", "--kl-direction: expected --loss mtpd or kl"),
        ("mtpd train --model m --no-detach-teacher", "--no-detach-teacher: expected --train joint or lora"),
        ("mtpd train --model m --train joint --loss tv --no-detach-teacher", "--no-detach-teacher: expected"),
        ("mtpd train --model m --loss tv --kl-start .5", "--kl-start: got 0.5 with --loss tv"),
        ("mtpd train --model m --kl-reaches heads", "--kl-reaches heads: expected --train joint or lora"),
        ("mtpd train --model m --alpha 1 2 3 --data nowhere", "--alpha: got 3 values, expected 1 or 4"),
        ("mtpd train --model m --project-name p", "--project-name: expected --report-to"),
        ("mtpd train --model m --allow-base-mismatch", "--allow-base-mismatch: expected --init-heads"),
        ("mtpd train --cache c --data d", "--data: not with --cache"),
    ],
)
def test_no_effect_is_refused(
    typed: str, words: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if "--alpha 1 2 3" in typed:
        (tmp_path / "nowhere").mkdir()
        (tmp_path / "nowhere" / "train.jsonl").write_text('{"text": "a"}\n')
    assert words in said(typed, capsys)
    assert {p.name for p in tmp_path.iterdir()} <= {"nowhere"}


def test_a_file_is_not_ignored_either(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "c.yaml").write_text("iters: 3\n")
    assert "--iters: not with --train-free" in said(f"mtpd extend x --to 8 --train-free -c {tmp_path / 'c.yaml'}", capsys)


@pytest.mark.parametrize("extra", ["--model x", "--allow-base-mismatch"])
@pytest.mark.parametrize("command", ["generate BASE -p a --plain", "probe BASE"])
def test_a_base_has_no_other_base(command: str, extra: str, tiny_base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = said(f"mtpd {command.replace('BASE', str(tiny_base))} {extra}", capsys)
    assert f"{extra.split(' ')[0]}: expected a heads checkpoint, got {tiny_base}, which is a base" in line


@pytest.mark.parametrize("command", ["inspect", "info", "import-heads"])
def test_a_folder_has_no_revision(command: str, tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = f" --out {tmp_path / 'o'}" if command == "import-heads" else ""
    assert f"--revision v1: expected a hub id with it, got the folder {tiny_base}" in said(
        f"mtpd {command} {tiny_base} --revision v1{out}", capsys
    )


@pytest.mark.parametrize(("text", "words"), [("iters: x", "--iters: got 'x'"), ("optimizer: sgd", "--optimizer: got 'sgd'")])
def test_a_file_and_a_flag_are_named_alike(text: str, words: str, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "c.yaml").write_text(text)
    assert words in said(f"mtpd train -c {tmp_path / 'c.yaml'}", capsys)
