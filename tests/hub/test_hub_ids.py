"""Commands that take heads take them from the hub too."""

import json
from pathlib import Path

import pytest
from helpers.runs import flags
from hub_helpers import contents, mtpd, refused
from stub_hub import Hub, Repository

QUICK = flags(iters=1, num_heads=None)


@pytest.fixture
def home(hub: Hub, tiny_base: Path, tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """Heads me/heads of me/base on the hub, nothing here."""
    hub.repositories["me/base"] = Repository(contents(tiny_base))
    heads = contents(tiny_checkpoint)
    config = json.loads(heads["mtp_config.json"])
    config["base"]["id"] = "me/base"
    hub.repositories["me/heads"] = Repository(heads | {"mtp_config.json": json.dumps(config).encode()})
    return tmp_path


def test_every_command_that_takes_heads_takes_a_hub_id(hub: Hub, home: Path, text_data: Path) -> None:
    train = ["--model", "me/base", "--data", str(text_data), *QUICK]
    not_better = ["--learning-rate", "0"]  # so that the run ends with status 3, and keeps its log alone
    for command, code, made in (
        (["export", "me/heads", "--out", "onnx"], 0, "onnx/manifest.json"),
        (["export-heads", "me/heads", "--out", "model"], 0, "model/model.safetensors"),
        (["extend", "me/heads", "--to", "4", "--train-free", "--out", "long"], 0, "long/heads.safetensors"),
        (["refit", "me/heads", "--out", "refitted", *train], 0, "refitted/heads.safetensors"),
        (
            ["train", "--init-heads", "me/heads", "--num-heads", "3", "--out", "more", *train, *not_better],
            3,
            "more/train_log.jsonl",
        ),
    ):
        done = mtpd(hub, home, *command)
        assert done.returncode == code, done.stderr
        assert (home / made).is_file()


def test_a_revision_is_kept_apart_from_the_id(hub: Hub, home: Path, text_data: Path) -> None:
    hub.repositories["me/base"].revisions += ("v1",)
    done = mtpd(hub, home, "train", "--model", "me/base@v1", "--data", str(text_data), "--out", "h", "--num-heads", "1", *QUICK)
    assert done.returncode == 0, done.stderr
    base = json.loads((home / "h" / "mtp_config.json").read_text())["base"]
    assert base["id"] == "me/base" and base["revision"] == "v1"
    assert "of base me/base@v1 (" in mtpd(hub, home, "inspect", "h").stdout
    hub.seen.clear()
    assert mtpd(hub, home, "generate", "h", "-p", "abc", "-m", "4").returncode == 0
    assert any(path.endswith("/revision/v1") for _, path, _, _ in hub.seen)


def test_tune_stores_what_generate_then_follows(hub: Hub, home: Path) -> None:
    refused(mtpd(hub, home, "tune", "me/nothing", "--prompts", "none.txt"), "no such folder; as a hub id: no such repository")
    (home / "prompts.txt").write_text("abc\n")
    done = mtpd(hub, home, "tune", "me/heads", "--prompts", "prompts.txt", "-m", "8", "--repeats", "1", "--plan", "growing")
    assert done.returncode == 0 and "stored" in done.stdout, done.stderr
    (config,) = (home / "hub" / "models--me--heads" / "snapshots").glob("*/mtp_config.json")
    blobs = home / "hub" / "models--me--heads" / "blobs"
    assert all(b"tuned" not in blob.read_bytes() for blob in blobs.iterdir())  # what was downloaded is as it was
    entries = json.loads(config.read_text())
    for entry in entries["tuned"].values():
        entry |= {"costs": {"heads 1": -1}}
    config.write_text(json.dumps(entries))
    refused(mtpd(hub, home, "generate", "me/heads", "-p", "abc", "-m", "4"), "tuned: costs: heads 1: got -1")
