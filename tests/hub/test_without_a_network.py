"""Hub ids where the hub cannot be reached, and names that are no hub ids at all."""

import shutil
from pathlib import Path

import pytest
from hub_helpers import NOWHERE, contents, mtpd, mtpd_process, refused
from stub_hub import SHA, Hub, Repository

LINE = "using what the local cache holds"
OFFLINE = {"HF_HUB_OFFLINE": "1"}


@pytest.fixture
def pulled(hub: Hub, tiny_base: Path, tmp_path: Path) -> Path:
    """The home of a user who has pulled me/base and is now without a network; his snapshot lies in `snapshot`."""
    hub.repositories["me/base"] = Repository(contents(tiny_base), revisions=("main", "v1", SHA))
    for name in ("me/base", "me/base@v1"):
        assert mtpd(hub, tmp_path, "pull", name).returncode == 0
    hub.url = NOWHERE
    return tmp_path


def snapshot(home: Path) -> Path:
    return home / "hub" / "models--me--base" / "snapshots" / SHA


def test_a_cached_model_is_used_and_that_is_said_once(hub: Hub, pulled: Path) -> None:
    for command in (["generate", "me/base@v1", "--plain", "-p", "abc", "-m", "4"], ["inspect", "me/base"]):
        done = mtpd(hub, pulled, *command)
        assert done.returncode == 0, done.stderr
        assert done.stderr.count(LINE) == 1 and "ConnectError" in done.stderr
    done = mtpd(hub, pulled, "inspect", "me/base@v1", **OFFLINE)  # asked for: nothing to say
    assert done.returncode == 0 and "me/base: a model" in done.stdout and LINE not in done.stderr, done.stderr


def test_a_hub_that_fails_is_as_none(hub: Hub, tiny_base: Path, tmp_path: Path) -> None:
    hub.repositories["me/base"] = Repository(contents(tiny_base))
    assert mtpd(hub, tmp_path, "pull", "me/base").returncode == 0
    hub.down = True
    done = mtpd(hub, tmp_path, "inspect", "me/base")
    assert done.returncode == 0 and LINE in done.stderr
    refused(mtpd(hub, tmp_path, "inspect", "me/other"), "not in the local cache, and the hub answered 503")


def test_a_snapshot_with_holes_is_none(hub: Hub, pulled: Path) -> None:
    (snapshot(pulled) / "model.safetensors").unlink()
    refused(mtpd(hub, pulled, "inspect", "me/base", **OFFLINE), "me/base: no such folder; as a hub id: not in the local cache")
    shutil.rmtree(pulled / "hub" / "models--me--base" / "trees")  # as after another program, which keeps no list
    done = mtpd_process(hub, pulled, "generate", "me/base", "--plain", "-p", "a")
    refused(done, "not whole in the local cache, and the hub cannot be reached")


def test_names_that_are_no_hub_ids(hub: Hub, tmp_path: Path) -> None:
    """A typo in a path is one, whether the hub is there or not; nothing is said about going on."""
    (tmp_path / "tb").mkdir()
    (tmp_path / "tb" / "config.json").write_text("{}")
    for command in (["inspect"], ["generate", "-p", "a"], ["export", "--out", "x"]):
        refused(mtpd(hub, tmp_path, *command, "models/qwen"), "models/qwen: no such folder; as a hub id: no such repository")
    refused(mtpd(hub, tmp_path, "inspect", "tb/config.json"), "tb/config.json: is a file, expected a folder")
    refused(mtpd(hub, tmp_path, "inspect", "./models/qwen"), "./models/qwen: no such folder, and not a hub id")
    hub.url = NOWHERE
    done = mtpd(hub, tmp_path, "inspect", "models/qwen")
    refused(done, "no such folder; as a hub id: not in the local cache, and the hub cannot be reached (ConnectError")
    assert "stopped" not in done.stderr
