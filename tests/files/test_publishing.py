"""Files that change together: a failure before the renames changes nothing, a kill among them is made good."""

import os
from pathlib import Path
from typing import Any

import pytest

from mtpd_mlx.files.publish import finish, publish, stage_folder, staged

NAMES = ("base", "weights", "description")


def write(folder: Path, text: str) -> None:
    (folder / "part").write_text(text)


def stage(folder: Path, text: str) -> None:
    stage_folder(folder / "base", lambda new: write(new, text))
    for name in NAMES[1:]:
        staged(folder / name).write_text(text)


def holds(folder: Path, text: str) -> bool:
    """Whole, and nothing besides."""
    files = [folder / "base" / "part", *(folder / name for name in NAMES[1:])]
    return {f.name for f in folder.iterdir()} == set(NAMES) and all(f.read_text() == text for f in files)


class Killed:
    """Lets the first `calls` calls of os.rename, os.replace and os.unlink through; the next one never happens."""

    def __init__(self, calls: int, patch: pytest.MonkeyPatch):
        self.left = calls
        for name in ("rename", "replace", "unlink"):
            patch.setattr(os, name, self.counted(getattr(os, name)))

    def counted(self, real: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            if self.left == 0:
                raise KeyboardInterrupt
            self.left -= 1
            return real(*args, **kwargs)

        return call


def publish_but_for(calls: int, out: Path, hide: str | None, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether it was killed."""
    with monkeypatch.context() as patch:
        Killed(calls, patch)
        try:
            publish(out, NAMES, hide)
        except KeyboardInterrupt:
            return True
    return False


@pytest.mark.parametrize("hide", [None, "description"])
@pytest.mark.parametrize("old", ["nothing", "folder", "link"])
def test_a_kill_at_any_rename_is_made_good(old: str, hide: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed, calls = True, 0
    while killed:
        out, elsewhere = tmp_path / f"out{calls}", tmp_path / f"elsewhere{calls}"
        out.mkdir()
        if old != "nothing":
            stage(out, "old")
            publish(out, NAMES)
        if old == "link":
            (out / "base").rename(elsewhere)
            (out / "base").symlink_to(elsewhere)
        stage(out, "new")
        killed = publish_but_for(calls, out, hide, monkeypatch)
        finish(out)
        if calls == 0:  # before the list of renames was there: nothing has changed, and what is staged may go
            assert not (out / "description").exists() if old == "nothing" else (out / "description").read_text() == "old"
        else:
            assert holds(out, "new"), f"killed before call {calls + 1}"
        if old == "link":
            assert (elsewhere / "part").read_text() == "old", "what a link leads to is not ours"
        calls += 1
    assert calls > 4


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{",
        '{"names": ["weights"]}',
        '{"names": ["../x"], "hide": null}',
        '{"names": [], "hide": "a/b"}',
        '{"names": [".."], "hide": null}',
        '{"names": 3, "hide": null}',
    ],
)
def test_a_list_that_is_none_is_refused(content: str, tmp_path: Path) -> None:
    """It is read in --out, which may be a folder from anywhere: nothing outside is touched."""
    out = tmp_path / "out"
    out.mkdir()
    (out / ".publishing.json").write_text(content)
    (tmp_path / ".new.x").write_text("somebody's")
    with pytest.raises(ValueError, match=r"publishing\.json: (damaged|got)"):
        finish(out)
    assert (tmp_path / ".new.x").read_text() == "somebody's"
