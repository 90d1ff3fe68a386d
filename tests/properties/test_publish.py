"""Files and folders that change together: killed before any change to the disk, they are all old or all new once finished.

A kill is a copy of the folder as it is at that moment: no clean-up of the killed process runs in it.
"""

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scratch import scratch_folder

from mtpd_mlx.files.publish import finish, publish, stage_folder, staged

CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "shutil.rmtree")
_watching: list[Callable[[], None]] = []  # an audit hook cannot be taken away again: it does nothing while this is empty


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    writes = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
    if _watching and (event in CHANGES or writes):
        watcher = _watching.pop()  # not while it copies
        try:
            watcher()
        finally:
            _watching.append(watcher)


@pytest.fixture(scope="module", autouse=True)
def audited() -> Iterator[None]:
    sys.addaudithook(_hook)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)  # a killed process, not a loss of power; most of the time otherwise
        yield


def moments(folder: Path, copies: Path, run: Callable[[], None]) -> list[Path]:
    """`folder` as it was before each change that `run` made, and as it is after the last."""
    made: list[Path] = []

    def copy() -> None:
        made.append(copies / f"{copies.name}-{len(made)}")
        shutil.copytree(folder, made[-1], symlinks=True)

    _watching.append(copy)
    try:
        run()
    finally:
        _watching.clear()
    copy()
    return made


@dataclass(frozen=True)
class Case:
    """`kinds`: of each name, whether it is a folder; `before`: what is there (absent, plain or a link). `hide`: the last name,
    a file, hides the others from readers."""

    kinds: tuple[bool, ...]
    before: tuple[str, ...]
    hide: bool

    @property
    def names(self) -> list[str]:
        return [f"part{i}" for i in range(len(self.kinds))]

    @property
    def hidden_by(self) -> str | None:
        return self.names[-1] if self.hide else None


@st.composite
def cases(draw: st.DrawFn) -> Case:
    parts = st.tuples(st.booleans(), st.sampled_from(["absent", "plain", "plain", "link"]))
    kinds, before = zip(*draw(st.lists(parts, min_size=1, max_size=4)), strict=True)
    return Case(kinds, before, hide=draw(st.booleans()) and not kinds[-1])


FEWER = settings(max_examples=settings().max_examples // 4)  # an example is dozens of copies of a folder


@contextmanager
def prepared(case: Case) -> Iterator[tuple[Path, Path]]:
    """(the folder with the old parts, and the new ones staged; where copies go)"""
    with scratch_folder() as root:
        folder, elsewhere, copies = (root / name for name in ("folder", "elsewhere", "copies"))
        for made in (folder, elsewhere, copies):
            made.mkdir()
        for name, is_folder, before in zip(case.names, case.kinds, case.before, strict=True):
            live = folder / name
            if before != "absent":
                fill(elsewhere / name if before == "link" else live, is_folder, "old")
            if before == "link":
                live.symlink_to(elsewhere / name)
            if is_folder:
                stage_folder(live, lambda new: [fill(new / f"{n}", False, "new") for n in "ab"] and None)  # type: ignore[func-returns-value]
            else:
                fill(staged(live), False, "new")
        yield folder, copies
        for name, is_folder, before in zip(case.names, case.kinds, case.before, strict=True):
            if before == "link":  # what a link leads to is not ours
                assert state(elsewhere / name) == "old" and (elsewhere / name).is_dir() == is_folder


def fill(path: Path, is_folder: bool, text: str) -> None:
    if is_folder:
        path.mkdir()
    for file in [path / "a", path / "b"] if is_folder else [path]:
        file.write_text(text)


def state(path: Path) -> str:
    """absent, old, new, or mixed"""
    if not path.exists():
        return "absent"
    found = {f.read_text() for f in (path.iterdir() if path.is_dir() else [path])}
    return found.pop() if len(found) == 1 else "mixed"


def states(folder: Path, case: Case) -> list[str]:
    return [state(folder / name) for name in case.names]


def check_finished(folder: Path, case: Case) -> None:
    now = states(folder, case)
    old = ["absent" if before == "absent" else "old" for before in case.before]
    new = ["new"] * len(now)
    assert now in (old, new)
    if now == new:  # nothing is left lying about
        assert {p.name for p in folder.iterdir()} == set(case.names)


def check_reader(folder: Path, case: Case) -> None:
    """At no moment does a reader take parts of both: it looks at the others only where the one that hides them is there."""
    now = states(folder, case)
    assert "mixed" not in now
    if case.hide and now[-1] != "absent":
        assert set(now) <= {"old", "absent"} or set(now) == {"new"}


@FEWER
@given(cases())
@example(Case((True, True, False, False), ("link", "plain", "plain", "absent"), True))
def test_a_kill_at_any_change(case: Case) -> None:
    with prepared(case) as (folder, copies):
        killed = moments(folder, copies, lambda: publish(folder, case.names, case.hidden_by))
        check_finished(folder, case)
        assert states(folder, case) == ["new"] * len(case.names)
        for moment in killed:
            check_reader(moment, case)
            for unfinished in moment.glob(".*.tmp"):  # half of it is written: what has a temporary name is nobody's
                unfinished.write_bytes(unfinished.read_bytes()[: unfinished.stat().st_size // 2])
            finish(moment)
            check_finished(moment, case)
            finish(moment)  # nothing is left to do
            check_finished(moment, case)


@FEWER
@given(cases(), st.integers(0, 30))
def test_kills_while_finishing(case: Case, at: int) -> None:
    with prepared(case) as (folder, copies):
        first = moments(folder, copies, lambda: publish(folder, case.names, case.hidden_by))
        chosen = first[at % len(first)]
        again = copies / "again"
        again.mkdir()
        for moment in moments(chosen, again, lambda: finish(chosen)):
            check_reader(moment, case)
            finish(moment)
            check_finished(moment, case)
