"""Who writes heads over an interrupted run ends it: a later --resume finds nothing to put in their place."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny import write_base, write_checkpoint

from mtpd_mlx.checkpoints.run_files import forget_run, forget_stages, holds_run
from mtpd_mlx.cli import main

STEPS = ["--iters", "4", "--save-every", "2", "--max-seq-length", "32", "--batch-size", "2", "--learning-rate", "1e-3"]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


@pytest.fixture
def interrupted(
    tiny_base: Path, text_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[list[str]], None]:
    """Runs a command that trains, and stops it after its first resume point."""

    def run(arguments: list[str]) -> None:
        from mtpd_mlx.train import loop

        save = loop.save_resume_point

        def save_and_stop(*args: object) -> None:
            save(*args)  # type: ignore[arg-type]
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(loop, "save_resume_point", save_and_stop)
            assert main(arguments) == 130

    return run


def training(tiny_base: Path, text_data: Path, out: Path) -> list[str]:
    return ["train", "--model", str(tiny_base), "--data", str(text_data), "--num-heads", "2", "--out", str(out), *STEPS]


@pytest.mark.parametrize("writer", ["extend", "import-heads"])
def test_resume_does_not_replace_heads_that_were_written_since(
    writer: str,
    interrupted: Callable[[list[str]], None],
    tiny_base: Path,
    text_data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    out, checkpoint = tmp_path / "out", write_checkpoint(tmp_path / "heads", tiny_base, 1, noise=0.2)
    interrupted(training(tiny_base, text_data, out))
    assert holds_run(out)
    if writer == "extend":
        command = ["extend", str(checkpoint), "--to", "2", "--train-free"]
    else:
        assert main(["export-heads", "--with-base", str(checkpoint), "--out", str(tmp_path / "served")]) == 0
        command = ["import-heads", str(tmp_path / "served")]
    before = contents(out)
    assert main([*command, "--out", str(out)]) == 1  # without --overwrite
    assert contents(out) == before
    assert main([*command, "--out", str(out), "--overwrite"]) == 0
    assert not holds_run(out)
    written = contents(out)
    assert set(written) == {"heads.safetensors", "mtp_config.json"}
    capsys.readouterr()
    assert main([*training(tiny_base, text_data, out), "--resume"]) == 1
    assert "holds no interrupted run" in capsys.readouterr().err
    assert contents(out) == written


def test_stages_of_an_earlier_extension_go_too(
    interrupted: Callable[[list[str]], None], tiny_base: Path, text_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """An extension that was interrupted in its first stage leaves that under stages/."""
    out, checkpoint = tmp_path / "out", write_checkpoint(tmp_path / "heads", tiny_base, 1, noise=0.2)
    extension = ["extend", str(checkpoint), "--to", "4", "--data", str(text_data), "--out", str(out), *STEPS]
    interrupted(extension)
    assert (out / "stages" / "2").is_dir() and holds_run(out)
    assert main(["extend", str(checkpoint), "--to", "4", "--train-free", "--out", str(out), "--overwrite"]) == 0
    assert not (out / "stages").exists()
    written = contents(out)
    capsys.readouterr()
    assert main([*extension, "--resume"]) == 1
    assert "holds no interrupted extension" in capsys.readouterr().err
    assert contents(out) == written
    interrupted([*extension, "--overwrite"])
    assert main([*training(tiny_base, text_data, out), "--overwrite"]) in (0, 3)
    assert not (out / "stages").exists()


def test_the_checkpoint_at_work_may_be_a_stage(tmp_path: Path) -> None:
    tiny = write_base(tmp_path / "base")
    stage = write_checkpoint(tmp_path / "out" / "stages" / "2", tiny, 2)
    for file in (stage / "train_options.json", tmp_path / "out" / "train_options.json"):
        file.write_text("{}")
    shutil.copytree(stage, stage.with_name("3"))
    (stage.parent / "notes.txt").write_text("a user's own")
    forget_run(tmp_path / "out", keep=stage)
    assert sorted(p.name for p in stage.parent.iterdir()) == ["2", "notes.txt"]
    forget_stages(tmp_path / "out")
    assert sorted(p.name for p in stage.parent.iterdir()) == ["notes.txt"]
