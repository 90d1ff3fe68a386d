"""A cache run that is interrupted, killed or refused: what lies on disk, and what --resume makes of it."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.cache import arguments, files_of, make
from helpers.runs import error_line, how_to_go_on

from mtpd_mlx.cli import main
from mtpd_mlx.teacher_cache.format import file_sha256, read_index
from mtpd_mlx.teacher_cache.reader import CachedDataset
from mtpd_mlx.teacher_cache.writer import ShardFile

Usage = namedtuple("Usage", "total used free")


@pytest.fixture(scope="module")
def long_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for name, count in (("train", 80), ("valid", 12)):
        rows = [{"text": "abcdefgh ijklm nopq " * 3 + str(i % 7)} for i in range(count)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, long_data: Path) -> Path:
    """An uninterrupted cache, which no test changes."""
    out = tmp_path_factory.mktemp("whole") / "cache"
    make(tiny_base, long_data, out)
    return out


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "copy"))


def check_partial(out: Path, whole: Path) -> int:
    """Every shard under its final name is whole, and the index names only such. Returns how many there are."""
    expected, got = files_of(whole), files_of(out)
    assert all(content == expected[name] for name, content in got.items())
    listed = [shard for split in read_index(out).splits.values() for shard in split.shards]
    assert all(file_sha256(out / shard.file) == shard.sha256 for shard in listed)
    return len(got)


@pytest.mark.parametrize(
    ("seed", "error", "where"),
    [(0, RuntimeError("no more"), "append"), (1, KeyboardInterrupt(), "commit"), (2, OSError(28, "full"), "commit")],
)
def test_exception_at_a_random_shard(
    seed: int, error: BaseException, where: str, tiny_base: Path, long_data: Path, whole: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    total = len(files_of(whole))
    stop = int(np.random.default_rng(seed).integers(1, total))
    calls, original = [0], getattr(ShardFile, where)

    def failing(self: ShardFile, *args: Any) -> Any:
        calls[0] += 1
        if calls[0] > stop:
            raise error
        return original(self, *args)

    out = tmp_path / "cache"
    with monkeypatch.context() as patch:
        patch.setattr(ShardFile, where, failing)
        with pytest.raises(type(error)):
            make(tiny_base, long_data, out)
    done = check_partial(out, whole)
    assert done < total and (done == stop or where == "append")
    assert not list(out.glob(".*")), "the temporary file goes with the exception"
    with pytest.raises(ValueError, match=re.escape(f"mtpd cache --resume --out {out}")):
        CachedDataset(out, "train", 2, 0)
    written = []
    with monkeypatch.context() as patch:
        commit = ShardFile.commit
        patch.setattr(ShardFile, "commit", lambda self: written.append(self.final.name) or commit(self))
        assert main(["cache", "--resume", "--out", str(out)]) == 0
    assert len(written) == total - done
    assert files_of(out) == files_of(whole)
    assert read_index(out).splits == read_index(whole).splits


@pytest.mark.slow
def test_killed_process_resumes_to_identical_shards(tiny_base: Path, long_data: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "cache"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    started = [sys.executable, "-m", "mtpd_mlx.cli", *arguments(tiny_base, long_data, out)]
    kills, command, seen = 0, started, 0
    for _ in range(2):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
        deadline = time.time() + 120
        while len(list(out.glob("*.safetensors"))) < seen + 2 and process.poll() is None and time.time() < deadline:
            time.sleep(0.002)
        process.kill()
        kills += process.wait() == -signal.SIGKILL
        seen = check_partial(out, whole)
        command = [sys.executable, "-m", "mtpd_mlx.cli", "cache", "--resume", "--out", str(out)]
    assert kills >= 1
    assert main(["cache", "--resume", "--out", str(out)]) == 0
    assert files_of(out) == files_of(whole) and read_index(out).splits == read_index(whole).splits
    assert {f.name for f in out.iterdir()} == {"cache.json", *files_of(whole)}


def test_killed_between_renaming_and_index(copy: Path, whole: Path) -> None:
    """A shard that the index does not name yet is made again, and what a killed run left is removed."""
    values = json.loads((copy / "cache.json").read_text())
    values["splits"]["valid"]["shards"].pop()
    (copy / "cache.json").write_text(json.dumps(values))
    (copy / ".valid-00001.safetensors.tmp").write_bytes(b"half")
    assert main(["cache", "--resume", "--out", str(copy)]) == 0
    assert files_of(copy) == files_of(whole) and not list(copy.glob(".*"))


def test_damaged_shards_are_made_again(copy: Path, whole: Path, capsys: pytest.CaptureFixture) -> None:
    names = sorted(files_of(whole))
    with (copy / names[0]).open("r+b") as f:
        f.seek(5000)
        byte = f.read(1)
        f.seek(5000)
        f.write(bytes([byte[0] ^ 1]))
    os.truncate(copy / names[1], 100)
    (copy / names[2]).unlink()
    assert main(["cache", "--resume", "--out", str(copy)]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "made again" in line]
    assert len(lines) == 3 and "altered" in lines[0] and "truncated" in lines[1] and "missing" in lines[2]
    assert files_of(copy) == files_of(whole)


def test_resuming_a_complete_cache_changes_nothing(copy: Path, monkeypatch: Any) -> None:
    times = {f.name: f.stat().st_mtime_ns for f in copy.glob("*.safetensors")}
    monkeypatch.setattr(ShardFile, "__init__", lambda *a: pytest.fail("no shard is missing"))
    assert main(["cache", "--resume", "--out", str(copy)]) == 0
    assert times == {f.name: f.stat().st_mtime_ns for f in copy.glob("*.safetensors")}


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--top-n", "8"], ["top_n is 8", "has 7"]),
        (["--max-seq-length", "16"], ["max_seq_length is 16", "has 32"]),
        (["--cache-dtype", "bfloat16"], ["cache_dtype is 'bfloat16'", "has 'auto'"]),
        (["--no-pack"], ["pack is False", "has True"]),
    ],
)
def test_other_options_are_refused(flags: list[str], words: list[str], copy: Path, capsys: pytest.CaptureFixture) -> None:
    before = (copy / "cache.json").read_bytes()
    assert main(["cache", "--resume", "--out", str(copy), *flags]) == 1
    line = error_line(capsys)
    assert all(word in line for word in words), line
    assert (copy / "cache.json").read_bytes() == before


def test_other_base_or_data_are_refused(copy: Path, text_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    from tiny import write_base

    other = write_base(tmp_path / "other", seed=9)
    assert main(["cache", "--resume", "--out", str(copy), "--model", str(other)]) == 1
    assert "base fingerprint: got" in error_line(capsys)
    assert main(["cache", "--resume", "--out", str(copy), "--data", str(text_data)]) == 1
    assert "train_sha256: got" in error_line(capsys)


def test_moved_base_and_data_are_taken(copy: Path, tiny_base: Path, long_data: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(tiny_base, tmp_path / "moved"), shutil.copytree(long_data, tmp_path / "data")
    next(iter(copy.glob("valid-*"))).unlink()
    flags = ["--model", str(moved[0]), "--data", str(moved[1])]
    assert main(["cache", "--resume", "--out", str(copy), *flags]) == 0
    index = read_index(copy)
    assert Path(index.base.locate(copy)) == moved[0].resolve()  # where training will look for the base
    assert index.options["model"] == str(moved[0]) and index.options["data"] == [str(moved[1])]


def test_existing_cache_is_not_touched(
    copy: Path, tiny_base: Path, long_data: Path, whole: Path, capsys: pytest.CaptureFixture
) -> None:
    (copy / "notes.txt").write_text("mine")
    assert main(arguments(tiny_base, long_data, copy)) == 1
    assert "--overwrite" in error_line(capsys) and files_of(copy) == files_of(whole)
    assert main([*arguments(tiny_base, long_data, copy, "--overwrite"), "--top-n", "3", "--shard-mb", "1"]) == 0
    index = read_index(copy)
    assert index.complete and index.layout.top_n == 3 and (copy / "notes.txt").read_text() == "mine"
    assert set(files_of(copy)) == {s.file for split in index.splits.values() for s in split.shards}


def test_resume_of_nothing_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["cache", "--resume", "--out", str(tmp_path)]) == 1
    assert "no cache.json" in error_line(capsys)


def test_full_disk_is_refused_before_work(
    copy: Path, tiny_base: Path, long_data: Path, tmp_path: Path, monkeypatch: Any, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 0, 1000))
    out = tmp_path / "a" / "b"
    assert main(arguments(tiny_base, long_data, out)) == 1
    line = error_line(capsys)
    assert str(out) in line and "are free" in line and "MB more" in line and not out.exists()
    # What is there already need not fit again, nor what is replaced.
    assert main(["cache", "--resume", "--out", str(copy)]) == 0
    assert main(arguments(tiny_base, long_data, copy, "--overwrite")) == 0


def test_plan_is_printed_before_work(tiny_base: Path, long_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "cache"
    assert main(arguments(tiny_base, long_data, out)) == 0
    first = capsys.readouterr().out.splitlines()[0]
    index = read_index(out)
    rows = sum(split.rows for split in index.splits.values())
    total = sum(shard.bytes for split in index.splits.values() for shard in split.shards)
    assert f"315 bytes a token x {rows * 32:,} tokens" in first
    assert f"= {total / 1e6:,.2f} MB" in first and "GB free" in first


def test_ctrl_c_says_how_to_continue(
    tiny_base: Path, long_data: Path, tmp_path: Path, monkeypatch: Any, capsys: pytest.CaptureFixture
) -> None:
    import mtpd_mlx.teacher_cache.writer as writer

    calls, compute, out = [0], writer.teacher_rows, tmp_path / "cache"

    def interrupted(*args: Any) -> Any:
        calls[0] += 1
        if calls[0] == 9:
            raise KeyboardInterrupt
        return compute(*args)

    monkeypatch.setattr(writer, "teacher_rows", interrupted)
    assert main(arguments(tiny_base, long_data, out)) == 130
    command = how_to_go_on(capsys)
    monkeypatch.undo()
    assert main(command) == 0
    assert read_index(out).complete


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--top-n", "-1"], "--top-n: got -1"),
        (["--max-seq-length", "300"], "--max-seq-length: got 300, expected at most 256"),
        (["--shard-mb", "0"], "--shard-mb: got 0"),
        (["--batch-size", "0"], "--batch-size: got 0, expected at least 1"),
    ],
)
def test_bad_values(
    flags: list[str], words: str, tiny_base: Path, long_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main([*arguments(tiny_base, long_data, tmp_path / "cache"), *flags]) == 1
    assert words in error_line(capsys)


def test_out_that_is_a_file(tiny_base: Path, long_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "file").write_text("x")
    assert main(arguments(tiny_base, long_data, tmp_path / "file")) == 1
    assert "not a folder" in error_line(capsys)
    assert main(["cache", "--out", str(tmp_path / "cache"), "--data", str(long_data)]) == 1
    assert "missing option --model" in error_line(capsys)


def test_yaml_gives_options(tiny_base: Path, long_data: Path, whole: Path, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(f"model: {tiny_base}\ndata: {long_data}\nmax_seq_length: 32\nbatch_size: 2\ntop_n: 9\nshard_mb: 0.05\n")
    out = tmp_path / "cache"
    assert main(["cache", "-c", str(file), "--out", str(out), "--top-n", "7"]) == 0
    assert files_of(out) == files_of(whole)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("top-n: 9\n", "top_n is 9, the interrupted cache has 7"),
        ("topn: 7\n", "unknown config key 'topn'"),
        ("shard_mb: 5e-2\n", ""),
    ],
)
def test_yaml_is_compared_on_resume(text: str, words: str, copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Keys with a dash are the same options; 5e-2, which YAML reads as text, is the number."""
    (tmp_path / "c.yaml").write_text(text)
    code = main(["cache", "--resume", "--out", str(copy), "-c", str(tmp_path / "c.yaml")])
    assert code == (1 if words else 0)
    assert not words or words in error_line(capsys)


def test_shard_is_checked_while_written(tmp_path: Path, whole: Path) -> None:
    layout = read_index(whole).layout
    with ShardFile(tmp_path / "train-00000.safetensors", layout, 2) as file:
        with pytest.raises(ValueError, match="tokens: got int64"):
            file.append({"tokens": np.zeros((2, 32), np.int64)})
        with pytest.raises(ValueError, match="got 0 rows, expected 2"):
            file.commit()
    assert not list(tmp_path.iterdir())
