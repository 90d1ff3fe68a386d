"""Readers find what a killed run was putting in place, or say that they cannot."""

import os
import shutil
from pathlib import Path

import pytest
from tiny import write_checkpoint

from mtpd_mlx.checkpoints.format import CONFIG_NAME, WEIGHTS_NAME, read_config
from mtpd_mlx.cli import main
from mtpd_mlx.files.lock import locked
from mtpd_mlx.files.publish import LIST_NAME, publish, staged


def killed_while_publishing(old: Path, new: Path, out: Path, after: int) -> None:
    """The heads `old` in `out`, which those of `new` were to replace; killed after so many renames."""
    shutil.copytree(old, out)
    for name in (WEIGHTS_NAME, CONFIG_NAME):
        shutil.copyfile(new / name, staged(out / name))
    real, left = os.replace, after + 1  # the list comes first

    def replace(*args: object, **kwargs: object) -> None:
        nonlocal left
        if left == 0:
            raise KeyboardInterrupt
        left -= 1
        real(*args, **kwargs)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", replace)
        publish(out, (WEIGHTS_NAME, CONFIG_NAME), hide=CONFIG_NAME)


@pytest.fixture
def killed(tiny_base: Path, tmp_path: Path) -> tuple[Path, Path]:
    """(the heads that were to be there, the folder)"""
    old, new = (write_checkpoint(tmp_path / name, tiny_base, heads) for name, heads in (("old", 1), ("new", 2)))
    killed_while_publishing(old, new, tmp_path / "out", 0)
    return new, tmp_path / "out"


@pytest.mark.parametrize("after", [0, 1])
@pytest.mark.parametrize("command", ["inspect", "generate", "export", "eval", "extend"])
def test_every_reader_goes_on(after: int, command: str, tiny_base: Path, tmp_path: Path) -> None:
    old, new = (write_checkpoint(tmp_path / name, tiny_base, heads) for name, heads in (("old", 1), ("new", 2)))
    killed_while_publishing(old, new, tmp_path / "out", after)
    (tmp_path / "p.jsonl").write_text('{"prompt": "abc"}\n')
    more = {
        "inspect": [],
        "generate": ["--prompt", "a", "--max-tokens", "2"],
        "export": ["--out", str(tmp_path / "onnx")],
        "eval": ["--prompts", str(tmp_path / "p.jsonl"), "--max-tokens", "2"],
        "extend": ["--to", "4", "--train-free", "--out", str(tmp_path / "longer")],
    }[command]
    assert main([command, str(tmp_path / "out"), *more]) == 0
    assert {f.name for f in (tmp_path / "out").iterdir()} == {WEIGHTS_NAME, CONFIG_NAME}
    for name in (WEIGHTS_NAME, CONFIG_NAME):
        assert (tmp_path / "out" / name).read_bytes() == (new / name).read_bytes()


def test_a_folder_that_cannot_be_written_is_said(
    killed: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("mtpd_mlx.files.publish.finish", refused)
    for command in (["inspect", str(killed[1])], ["generate", str(killed[1]), "--prompt", "a"]):
        assert main(command) == 1
        lines = capsys.readouterr().err.strip().splitlines()
        assert (
            len(lines) == 1
            and "an interrupted run has to be finished here first" in lines[0]
            and "Permission denied" in lines[0]
        )


def test_a_run_that_is_still_at_it_is_left_alone(killed: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    from mtpd_mlx.files import lock

    with locked(killed[1]):
        monkeypatch.setattr(lock, "_held", set())  # as another process sees it
        with pytest.raises(ValueError, match=r"another run .* is writing there"):
            read_config(killed[1])
        monkeypatch.undo()
    assert (killed[1] / LIST_NAME).exists()
    assert read_config(killed[1]).num_heads == 2


def test_a_folder_that_was_being_replaced_is_named(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / ".onnx.123.old").mkdir()
    assert main(["inspect", str(tmp_path / "onnx")]) == 1
    assert "rename .onnx.123.old to get the old contents back" in capsys.readouterr().err


def test_imported_heads_change_together(tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between weights and description, the folder never holds new heads that pass for the old."""
    one, two = (write_checkpoint(tmp_path / name, tiny_base, heads, noise=0.1) for name, heads in (("one", 1), ("two", 2)))
    for heads in (one, two):
        assert main(["export-heads", "--with-base", str(heads), "--out", str(tmp_path / f"{heads.name}-served")]) == 0
    out = tmp_path / "out"
    assert main(["import-heads", str(tmp_path / "one-served"), "--out", str(out)]) == 0
    real, calls = os.replace, 0

    def replace(*args: object, **kwargs: object) -> None:
        nonlocal calls
        calls += 1
        if calls == 5:  # two staged files, the list, the weights; then the description
            raise KeyboardInterrupt
        real(*args, **kwargs)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace)
        assert main(["import-heads", str(tmp_path / "two-served"), "--out", str(out), "--overwrite"]) == 130
    assert not (out / CONFIG_NAME).exists() and (out / LIST_NAME).exists()
    assert read_config(out).num_heads == 2


def test_a_model_with_heads_is_there_whole_or_not_at_all(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, out = write_checkpoint(tmp_path / "heads", tiny_base, 1), tmp_path / "served"

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mtpd_mlx.checkpoints.shipped.write._write_index", fail)
    assert main(["export-heads", "--with-base", str(checkpoint), "--out", str(out)]) == 1
    assert not out.exists() and not list(tmp_path.glob(".served*"))
