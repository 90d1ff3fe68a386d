"""One run at a time writes into a folder: a second one is refused before it changes anything; a dead one locks nothing."""

import errno
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mtpd_onnx.export.export import export_checkpoint
from tiny import write_base, write_checkpoint

from mtpd_mlx.checkpoints.shipped.write import export_heads
from mtpd_mlx.cli import main
from mtpd_mlx.demo.folder import MARK, demo_folder
from mtpd_mlx.files import lock
from mtpd_mlx.files.lock import NAME, check_unlocked, is_empty, locked

Hold = Callable[..., subprocess.Popen]
PROGRAM = (
    "import pathlib, sys\n"
    "from mtpd_mlx.files.lock import locked\n"
    "with locked(pathlib.Path(sys.argv[1]), beside=len(sys.argv) > 2):\n"
    "    print('held', flush=True)\n"
    "    sys.stdin.read()\n"
)


@pytest.fixture
def hold() -> Iterator[Hold]:
    """Starts a process that holds a folder until its input ends."""
    started: list[subprocess.Popen] = []

    def start(folder: Path, *beside: str) -> subprocess.Popen:
        command = [sys.executable, "-c", PROGRAM, str(folder), *beside]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def contents(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


@pytest.mark.parametrize("beside", [(), ("beside",)])
def test_a_second_run_is_refused_until_the_first_one_is_dead(beside: tuple[str, ...], hold: Hold, tmp_path: Path) -> None:
    out = tmp_path / "out"
    holder = hold(out, *beside)
    for _ in range(2):
        with pytest.raises(ValueError) as error, locked(out, bool(beside)):
            pass
        assert (
            str(error.value)
            == f"--out {out}: another run (process {holder.pid}) is writing there; wait for it, or use another folder"
        )
    holder.kill()
    holder.wait()
    file = tmp_path / f".out{NAME}" if beside else out / NAME
    assert file.exists(), "a killed process leaves it"
    with locked(out, bool(beside)):
        pass
    assert not file.exists()


def test_a_run_that_ends_leaves_nothing(hold: Hold, tmp_path: Path) -> None:
    holder = hold(tmp_path / "out")
    holder.communicate("")
    assert holder.returncode == 0 and list(tmp_path.iterdir()) == []


def commands(root: Path, base: Path, data: Path) -> dict[str, list[str]]:
    """Every command that fills a folder, without its --out."""
    heads = write_checkpoint(root / "heads", base, num_heads=2)
    training = ["--data", str(data), "--iters", "2", "--batch-size", "2", "--max-seq-length", "24"]
    model = ["--model", str(base)]
    return {
        "train": ["train", *model, *training, "--overwrite"],
        "extend": ["extend", str(heads), "--to", "4", *training, "--overwrite"],
        "extend by copying": ["extend", str(heads), "--to", "4", "--train-free", "--overwrite"],
        "refit": ["refit", str(heads), *model, *training, "--overwrite"],
        "cache": ["cache", *model, "--data", str(data), "--overwrite"],
        "distill-data": ["distill-data", *model, "--prompts", str(data / "train.jsonl"), "--overwrite"],
        "import-heads": ["import-heads", str(root / "served"), "--overwrite"],
        "export-heads": ["export-heads", str(heads)],
        "export": ["export", str(heads)],
    }


NAMES = ["train", "extend", "extend by copying", "refit", "cache", "distill-data", "import-heads", "export-heads", "export"]


@pytest.mark.parametrize("name", NAMES)
def test_every_writer_of_a_folder_is_refused(
    name: str, hold: Hold, tiny_base: Path, text_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "out"
    made = commands(tmp_path, tiny_base, text_data)
    assert list(made) == NAMES
    if name == "import-heads":
        export_heads(tmp_path / "heads", tiny_base, tmp_path / "served", with_base=True)
    holder = hold(out, *(["beside"] if name == "export" else []))
    out.mkdir(exist_ok=True)
    if not name.startswith("export"):
        for file in ("cache.json", "train.jsonl", "mtp_config.json", ".new.mtp_config.json", ".publishing.json"):
            (out / file).write_text('{"names": ["mtp_config.json"], "hide": null}')
    before = contents(out)
    capsys.readouterr()
    assert main([*made[name], "--out", str(out)]) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert (
        len(lines) == 1
        and f"--out {out}: another run (process {holder.pid}) is writing there; wait for it, or use another folder" in lines[0]
    )
    assert contents(out) == before
    assert list(commands(tmp_path / "again", tiny_base, text_data)) == NAMES


def test_two_demos(hold: Hold, tmp_path: Path) -> None:
    out = tmp_path / "demo"
    with demo_folder(out, overwrite=False):
        (out / "report.json").write_text("{}")
    hold(out, "beside")
    with pytest.raises(ValueError, match="another run"), demo_folder(out, overwrite=True):
        pass
    assert {f.name for f in out.iterdir()} == {MARK, "report.json"}


def test_a_demo_replaces_only_its_own(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    with demo_folder(out, overwrite=False):
        (out / "report.json").write_text("{}")
    with pytest.raises(ValueError, match="exists already"), demo_folder(out, overwrite=False):
        pass
    with demo_folder(out, overwrite=True):
        assert [f.name for f in out.iterdir()] == [MARK]
    (out / MARK).rename(out / "mine")
    with pytest.raises(ValueError, match="not a folder of an earlier demo"), demo_folder(out, overwrite=True):
        pass
    assert [f.name for f in tmp_path.iterdir()] == ["demo"] and (out / "mine").exists()


def test_one_process_may_take_it_again(tmp_path: Path) -> None:
    out = tmp_path / "a" / "out"
    with locked(out):
        with locked(out), locked(tmp_path / "a" / ".." / "a" / "out"):
            check_unlocked(out)
        assert (out / NAME).exists(), "the outer one still holds it"
    assert not out.exists(), "nothing was put into it"


def test_what_was_put_into_it_stays_whatever_happens(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), locked(tmp_path / "out"):
        (tmp_path / "out" / "mine").touch()
        raise KeyboardInterrupt
    assert [f.name for f in (tmp_path / "out").iterdir()] == ["mine"]
    (tmp_path / "empty").mkdir()
    with locked(tmp_path / "empty"):
        pass
    assert (tmp_path / "empty").is_dir(), "it was there before"
    with pytest.raises(ValueError, match="exists and is not a folder"), locked(tmp_path / "out" / "mine"):
        pass


def test_a_link_in_its_place_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    (tmp_path / NAME).symlink_to(tmp_path / "mine")
    with pytest.raises(OSError), locked(tmp_path):
        pass
    assert (tmp_path / "mine").read_text() == "precious"


def test_a_leftover_is_no_content(tiny_base: Path, tmp_path: Path) -> None:
    heads = write_checkpoint(tmp_path / "heads", tiny_base, num_heads=1)
    for write in (export_checkpoint, lambda checkpoint, out: export_heads(checkpoint, tiny_base, out)):
        out = tmp_path / "out"
        out.mkdir()
        (out / NAME).write_text("7\n")
        assert is_empty(out)
        write(heads, out)
        assert not is_empty(out) and not (out / NAME).exists()
        out.rename(tmp_path / f"done-{write.__name__}")
    assert not list(tmp_path.glob(".*"))


def test_a_lock_that_its_holder_removes_meanwhile_is_taken_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else two runs would hold two files of one name."""
    flock, calls = lock.fcntl.flock, []

    def late(descriptor: int, how: int) -> None:
        calls.append(1)
        if len(calls) == 1:
            (tmp_path / NAME).unlink()
        flock(descriptor, how)

    monkeypatch.setattr(lock.fcntl, "flock", late)
    with locked(tmp_path):
        assert len(calls) == 2 and (tmp_path / NAME).exists()


@pytest.mark.parametrize("without", ["fcntl", "flock"])
def test_where_there_are_no_locks_nothing_fails(without: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*args: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    if without == "fcntl":
        monkeypatch.setattr(lock, "fcntl", None)
    else:
        monkeypatch.setattr(lock.fcntl, "flock", refuses)
    with locked(tmp_path / "out"):
        (tmp_path / "out" / "mine").touch()
    assert [f.name for f in (tmp_path / "out").iterdir()] == ["mine"]
    check_unlocked(tmp_path / "out")


def test_a_base_is_not_loaded_for_a_run_that_is_refused(
    hold: Hold, text_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    made = commands(tmp_path, write_base(tmp_path / "base"), text_data)
    monkeypatch.setattr("mtpd_mlx.model.base.resolve_model", lambda *a: pytest.fail("loaded"))
    hold(tmp_path / "out")
    for name in ("train", "extend", "extend by copying", "refit", "cache", "distill-data"):
        assert main([*made[name], "--out", str(tmp_path / "out")]) == 1
        assert "another run" in capsys.readouterr().err.splitlines()[-1]


def test_tune_and_pull_hold_what_they_write_to(
    hold: Hold, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    from mtpd_mlx.hub import pull

    checkpoint = write_checkpoint(tmp_path / "heads", write_base(tmp_path / "base"), 2)
    (tmp_path / "prompts.txt").write_text("abc\n")
    monkeypatch.setattr("mtpd_mlx.model.base.resolve_model", lambda *a: pytest.fail("loaded"))
    hold(checkpoint)
    assert main(["tune", str(checkpoint), "--prompts", str(tmp_path / "prompts.txt")]) == 1
    assert "another run" in capsys.readouterr().err.splitlines()[-1]
    hold(tmp_path / "out")
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *a, **k: None)
    monkeypatch.setattr(pull, "_download", lambda *a: pytest.fail("downloaded"))
    assert main(["pull", "me/heads", "--out", str(tmp_path / "out")]) == 1
    assert "another run" in capsys.readouterr().err.splitlines()[-1]
