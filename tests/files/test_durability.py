"""What a kill or a loss of power may leave: final names hold whole things, nothing is removed before its successor is on disk,
and what was being written goes when the folder is used again."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny import write_checkpoint

from mtpd_mlx.checkpoints import format as checkpoint_format
from mtpd_mlx.checkpoints.format import read_config
from mtpd_mlx.files.publish import publish, stage_folder
from mtpd_mlx.model.base import load_base
from mtpd_mlx.model.load_save import load_checkpoint, save_heads, write_base
from mtpd_mlx.model.runtime import mx
from mtpd_mlx.train.folder import begin, check_free, take_up
from mtpd_mlx.train.resume_point import Progress, ResumePoint, latest_resume_point, save_resume_point


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of what reaches the disk, of folders and files that are removed, in order."""
    seen: list[str] = []
    fsync, rmtree, places = os.fsync, shutil.rmtree, {}
    opened = os.open

    def open_(path: Any, *args: Any, **kwargs: Any) -> int:
        descriptor = opened(path, *args, **kwargs)
        places[descriptor] = Path(path).name if isinstance(path, str | Path) else "?"
        return descriptor

    def removed(path: Any, *args: Any, **kwargs: Any) -> None:
        if Path(path).exists():
            seen.append(f"removed {Path(path).name}")
        rmtree(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", open_)
    monkeypatch.setattr(os, "fsync", lambda descriptor: seen.append(places.get(descriptor, "?")) or fsync(descriptor))
    monkeypatch.setattr(shutil, "rmtree", removed)
    return seen


def point(iteration: int) -> ResumePoint:
    return ResumePoint({"a": mx.zeros(3)}, {"step": mx.array(iteration)}, Progress(iteration=iteration))


def test_a_resume_point_is_on_disk_before_the_one_before_it_goes(tmp_path: Path, synced: list[str]) -> None:
    save_resume_point(tmp_path, point(1))
    synced.clear()
    save_resume_point(tmp_path, point(2))
    files = [f".{os.getpid()}.{name}.safetensors.safetensors" for name in ("params", "optimizer")]
    assert synced == [*files, f".progress.json.{os.getpid()}.tmp", ".resume-2.tmp", tmp_path.name, "removed resume-1"]
    assert latest_resume_point(tmp_path) == 2


def test_heads_killed_between_weights_and_description(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, synced: list[str]
) -> None:
    """New weights never pass for what the old description says; of the same kind of heads they may."""
    out = write_checkpoint(tmp_path / "old", tiny_base, num_heads=2)
    assert {"old", f"..new.mtp_config.json.{os.getpid()}.tmp"} <= set(synced)
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
        with pytest.raises(ValueError, match="not a heads checkpoint"):
            load_checkpoint(out)
        check_free(out, overwrite=True)  # the next run finishes what was begun
        assert load_checkpoint(out)[2] == config and read_config(out).hidden_source == "prenorm"
    assert {f.name for f in out.iterdir()} == {"heads.safetensors", "mtp_config.json"}


def test_a_base_is_on_disk_before_the_one_it_replaces_goes(tiny_base: Path, tmp_path: Path, synced: list[str]) -> None:
    base = load_base(str(tiny_base))
    for _ in range(2):
        synced.clear()
        stage_folder(tmp_path / "base", lambda new: write_base(new, base, tiny_base))
        publish(tmp_path, ["base"])
    assert {"model.safetensors", "config.json", "tokenizer.json"} < set(synced)
    assert synced[-4:] == [".new.base", f"..publishing.json.{os.getpid()}.tmp", tmp_path.name, "removed .old.base"]


@pytest.mark.parametrize("how", ["begin", "take up"])
def test_what_a_killed_run_was_writing_goes(how: str, tiny_base: Path, tmp_path: Path) -> None:
    out = write_checkpoint(tmp_path / "out", tiny_base, num_heads=1)
    begin(out, {}, {"rows": "a"})
    kept = {"heads.safetensors", "mtp_config.json", "train_options.json", "base", ".gitignore", "notes.tmp"}
    (out / ".gitignore").write_text("")
    (out / "notes.tmp").write_text("")
    (out / "base").mkdir()
    (out / "base" / "model.safetensors").write_text("base")
    for name in (".resume-137.tmp", ".new.base", ".old.base", ".new.adapters"):
        (out / name).mkdir()
        (out / name / "model.safetensors").write_text(name)
    for name in (".7.heads.safetensors.safetensors", ".7..new.heads.safetensors.safetensors", ".new.heads.safetensors"):
        (out / name).write_text("")
    (out / ".new.mtp_config.json").write_text("")
    for name in (".mtp_config.json.7.tmp", ".train_options.json.7.tmp", ".train_log.jsonl.tmp"):
        (out / name).write_text("")
    if how == "begin":
        begin(out, {}, {"rows": "a"})
    else:
        take_up(out, {"rows": "a"})
    assert {f.name for f in out.iterdir()} == kept
    assert (out / "base" / "model.safetensors").read_text() == "base"


def test_json_is_on_disk_before_its_name(tmp_path: Path, synced: list[str]) -> None:
    checkpoint_format.write_json(tmp_path / "a.json", {})
    assert synced == [f".a.json.{os.getpid()}.tmp"]
