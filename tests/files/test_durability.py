"""What a kill or a loss of power may leave: final names hold whole things, nothing is removed before its successor is on disk,
and what was being written goes when the folder is used again."""

import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import write_checkpoint

from mtpd_mlx.checkpoints.format import read_config
from mtpd_mlx.files.atomic import leftovers, replacing_folder, write_json, write_text
from mtpd_mlx.files.publish import publish, stage_folder
from mtpd_mlx.files.safetensors import Raw, write_raw
from mtpd_mlx.model.base import load_base
from mtpd_mlx.model.load_save import load_checkpoint, save_arrays, save_heads, write_base
from mtpd_mlx.model.runtime import mx
from mtpd_mlx.teacher_cache.format import Layout
from mtpd_mlx.teacher_cache.writer import ShardFile
from mtpd_mlx.train.folder import begin, take_up
from mtpd_mlx.train.resume_point import Progress, ResumePoint, latest_resume_point, save_resume_point


class Disk:
    """What reaches the disk, in order: (what happened, inode or name, contents of a file when it was synced)."""

    def __init__(self) -> None:
        self.events: list[tuple[str, Any, bytes | None]] = []

    def at(self, what: str, subject: Any, after: int = -1) -> int:
        """Place of the first such event after another one."""
        places = [i for i, (kind, of, _) in enumerate(self.events) if i > after and (kind, of) == (what, subject)]
        assert places, f"{subject} was not {what} after event {after}: {self.events}"
        return places[0]

    def put_in_place(self, path: Path) -> int:
        """Asserts that `path` was synced as it is now, then renamed, then its folder synced; the place of the last."""
        inode = path.stat().st_ino
        renamed = self.at("renamed", inode)
        for file in [path] if path.is_file() else [f for f in path.rglob("*") if f.is_file()]:
            assert ("synced", file.stat().st_ino, file.read_bytes()) in self.events[:renamed], f"{file}: renamed before"
        assert self.at("synced", inode) < renamed
        return self.at("synced", path.parent.stat().st_ino, renamed)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    seen = Disk()
    fsync, rmtree = os.fsync, shutil.rmtree

    def synced(descriptor: int) -> None:
        status = os.fstat(descriptor)
        contents = None if stat.S_ISDIR(status.st_mode) else os.pread(descriptor, status.st_size, 0)
        seen.events.append(("synced", status.st_ino, contents))
        fsync(descriptor)

    def renaming(real: Any) -> Any:
        def rename(source: Any, target: Any) -> None:
            seen.events.append(("renamed", Path(source).stat().st_ino, None))
            real(source, target)

        return rename

    def removed(path: Any, *args: Any, **kwargs: Any) -> None:
        if Path(path).exists():
            seen.events.append(("removed", Path(path).stat().st_ino, None))
        rmtree(path, *args, **kwargs)

    monkeypatch.setattr(os, "fsync", synced)
    for name in ("rename", "replace"):
        monkeypatch.setattr(os, name, renaming(getattr(os, name)))
    monkeypatch.setattr(shutil, "rmtree", removed)
    return seen


def write_shard(file: Path) -> None:
    layout = Layout(2, 5, 4, 0, "float32", "float32")
    with ShardFile(file, layout, 1) as shard:
        shard.append({n: np.ones((1, *t.shape), t.dtype) for n, t in layout.tensors().items()})
        shard.commit()


def write_folder(folder: Path) -> None:
    with replacing_folder(folder) as new:
        (new / "inside").mkdir()
        for name in ("a", "inside/b"):
            (new / name).write_text("whole")


WRITERS: dict[str, Callable[[Path], None]] = {
    "json": lambda path: write_json(path, {"a": 1}),
    "text": lambda path: write_text(path, "whole"),
    "arrays of MLX": lambda path: save_arrays(path, {"a": mx.ones(3)}),
    "raw tensors": lambda path: write_raw(path, {"a": Raw.of_floats(np.ones(3))}),
    "shard": write_shard,
    "folder": write_folder,
}


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("writer", WRITERS)
def test_what_is_written_is_on_disk_before_its_name(writer: str, old: bool, tmp_path: Path, disk: Disk) -> None:
    path = tmp_path / "final"
    if old:
        path.mkdir() if writer == "folder" else path.write_text("old")
    WRITERS[writer](path)
    disk.put_in_place(path)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("step", ["sync", "rename"])
@pytest.mark.parametrize("writer", WRITERS)
def test_a_failure_leaves_the_old_and_nothing_else(
    writer: str, step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "final"
    held = path / "mine" if writer == "folder" else path
    held.parent.mkdir(exist_ok=True)
    held.write_text("old")
    call = "fsync" if step == "sync" else "rename" if writer == "folder" else "replace"

    def failing(*args: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, call, failing)
        WRITERS[writer](path)
    assert list(tmp_path.iterdir()) == [path] and held.read_text() == "old"


def test_a_folder_that_cannot_take_its_place_gives_it_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, rename = tmp_path / "final", os.rename
    path.mkdir()
    (path / "mine").write_text("old")
    calls: list[int] = []

    def second_fails(source: Any, target: Any) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise OSError("disk")
        rename(source, target)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="disk"):
        patch.setattr(os, "rename", second_fails)
        write_folder(path)
    assert len(calls) == 3 and (path / "mine").read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_kill_leaves_the_old_and_a_leftover_that_is_found(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("old")
    program = (
        "import os, pathlib, sys\n"
        "from mtpd_mlx.files.atomic import replacing\n"
        "with replacing(pathlib.Path(sys.argv[1])) as temporary:\n"
        "    temporary.write_text('half')\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "a.json")], check=False)
    assert done.returncode == -9 and (tmp_path / "a.json").read_text() == "old"
    (found,) = leftovers(tmp_path, "*.json")
    assert found.read_text() == "half" and {found, tmp_path / "a.json"} == set(tmp_path.iterdir())
    assert leftovers(tmp_path, "b.json") == []


def point(iteration: int) -> ResumePoint:
    return ResumePoint({"a": mx.zeros(3)}, {"step": mx.array(iteration)}, Progress(iteration=iteration))


def test_a_resume_point_is_on_disk_before_the_one_before_it_goes(tmp_path: Path, disk: Disk) -> None:
    save_resume_point(tmp_path, point(1))
    before = (tmp_path / "resume-1").stat().st_ino
    disk.events.clear()
    save_resume_point(tmp_path, point(2))
    disk.at("removed", before, after=disk.put_in_place(tmp_path / "resume-2"))
    assert latest_resume_point(tmp_path) == 2


def test_heads_killed_between_weights_and_description(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, disk: Disk
) -> None:
    """New weights never pass for what the old description says; of the same kind of heads they may."""
    out = write_checkpoint(tmp_path / "old", tiny_base, num_heads=2)
    for name in ("heads.safetensors", "mtp_config.json"):
        disk.put_in_place(out / name)
    other = write_checkpoint(tmp_path / "new", tiny_base, num_heads=2, hidden_source="prenorm")

    def killed(self: Path, target: Path) -> Path:
        if target == out / "mtp_config.json":
            raise KeyboardInterrupt
        return replace(self, target)

    replace = Path.replace
    for source, readable in ((out, True), (other, False)):
        _, heads, config = load_checkpoint(source)
        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", killed)
            with pytest.raises(KeyboardInterrupt):
                save_heads(out, heads, config)
        if readable:
            load_checkpoint(out)
            continue
        assert not (out / "mtp_config.json").exists()
        # the next reader finishes what was begun
        assert load_checkpoint(out)[2] == config and read_config(out).hidden_source == "prenorm"
    assert {f.name for f in out.iterdir()} == {"heads.safetensors", "mtp_config.json"}


def test_a_base_is_on_disk_before_the_one_it_replaces_goes(tiny_base: Path, tmp_path: Path, disk: Disk) -> None:
    base = load_base(str(tiny_base))

    def save() -> None:
        stage_folder(tmp_path / "base", lambda new: write_base(new, base, tiny_base))
        publish(tmp_path, ["base"])

    save()
    before = (tmp_path / "base").stat().st_ino
    disk.events.clear()
    save()
    assert {"model.safetensors", "config.json", "tokenizer.json"} < {f.name for f in (tmp_path / "base").iterdir()}
    disk.at("removed", before, after=disk.put_in_place(tmp_path / "base"))


@pytest.mark.parametrize("how", ["begin", "take up"])
def test_what_a_killed_run_was_writing_goes(how: str, tiny_base: Path, tmp_path: Path) -> None:
    out = write_checkpoint(tmp_path / "out", tiny_base, num_heads=1)
    begin(out, {}, {"rows": "a"})
    kept = {"heads.safetensors", "mtp_config.json", "train_options.json", "base", ".gitignore", "notes.tmp"}
    (out / ".gitignore").write_text("")
    (out / "notes.tmp").write_text("")
    (out / "base").mkdir()
    (out / "base" / "model.safetensors").write_text("base")
    older = [".resume-137.tmp", ".7.heads.safetensors.safetensors", ".7..new.heads.safetensors.safetensors"]
    older += [".mtp_config.json.7.tmp", ".train_options.json.7.tmp", ".train_log.jsonl.tmp"]
    for name in (".resume-138.7.tmp", ".resume-137.7.old", ".new.base", ".old.base", ".new.adapters"):
        (out / name).mkdir()
        (out / name / "model.safetensors").write_text(name)
    for name in (*older, ".new.heads.safetensors", "..new.heads.safetensors.7.tmp", ".heads.safetensors.7.tmp"):
        (out / name).write_text("")
    for name in (".new.mtp_config.json", "..new.mtp_config.json.7.tmp", ".train_log.jsonl.7.tmp", "..publishing.json.7.tmp"):
        (out / name).write_text("")
    if how == "begin":
        begin(out, {}, {"rows": "a"})
    else:
        take_up(out, {"rows": "a"})
    assert {f.name for f in out.iterdir()} == kept
    assert (out / "base" / "model.safetensors").read_text() == "base"
