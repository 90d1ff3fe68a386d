"""Pulling, looking and pushing against a hub on this machine: real huggingface_hub, real HTTP; some commands as
a shell starts them, most in this process."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hub_helpers import NOWHERE, contents, mtpd, mtpd_process, refused
from stub_hub import SHA, Hub, Repository

from mtpd_mlx.checkpoints.format import parse_config
from mtpd_mlx.files.safetensors import Raw, write_raw
from mtpd_mlx.hub.push import prepare

TOKEN = "hf_welcome1234567"


def test_pull_by_id_and_revision_and_decode_offline(hub: Hub, tiny_base: Path, tmp_path: Path) -> None:
    pickled = {"pytorch_model.bin": b"x" * 100, "evil.py": b"import os", "onnx/model.onnx": b"x"}
    hub.repositories["me/base"] = Repository(contents(tiny_base) | pickled, revisions=("main", "v1", SHA))
    done = mtpd(hub, tmp_path, "pull", "me/base@v1")
    assert done.returncode == 0 and "family llama" in done.stdout, done.stderr
    got = {path.rpartition("/")[2] for method, path, _, _ in hub.seen if method == "GET" and "/resolve/" in path}
    assert "model.safetensors" in got and not got & {"pytorch_model.bin", "evil.py", "model.onnx"}
    offline = {"HF_HUB_OFFLINE": "1"}
    done = mtpd_process(hub, tmp_path, "generate", "me/base@v1", "--plain", "-p", "abc", "-m", "4", **offline)
    assert done.returncode == 0, done.stderr
    refused(mtpd(hub, tmp_path / "empty", "generate", "me/base", "--plain", "-p", "abc", **offline), "offline")
    done = mtpd(hub, tmp_path, "pull", "me/base", "--out", str(tmp_path / "here"))
    assert done.returncode == 0 and (tmp_path / "here" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("me/nothing", "no such repository"),
        ("me/gated", "accept its terms"),
        ("me/base@v9", "no revision v9"),
        ("nonsense", "owner/name"),
    ],
)
def test_clear_messages(name: str, word: str, hub: Hub, tiny_base: Path, tmp_path: Path) -> None:
    hub.repositories["me/base"] = Repository(contents(tiny_base))
    hub.repositories["me/gated"] = Repository(contents(tiny_base), gated=True)
    refused(mtpd(hub, tmp_path, "pull", name), word)


def test_gated_with_a_token_and_unreachable(hub: Hub, tiny_base: Path, tmp_path: Path) -> None:
    hub.repositories["me/gated"] = Repository(contents(tiny_base), gated=True)
    done = mtpd(hub, tmp_path, "pull", "me/gated", HF_TOKEN=TOKEN)
    assert done.returncode == 0, done.stderr
    assert any(auth == f"Bearer {TOKEN}" for *_, auth in hub.seen)
    assert TOKEN not in done.stdout + done.stderr
    done = mtpd(hub, tmp_path / "b", "pull", "me/gated", HF_TOKEN="hf_wrongwrongwrong")
    refused(done, "accept its terms")
    assert "hf_wrongwrongwrong" not in done.stderr
    hub.url = NOWHERE
    refused(mtpd(hub, tmp_path / "c", "pull", "me/gated"), "me/gated: not in the local cache, and the hub cannot be reached")


def test_an_interrupted_download_goes_on_where_it_stopped(hub: Hub, tiny_base: Path, tmp_path: Path) -> None:
    write_raw(tmp_path / "large.safetensors", {"model.norm.weight": Raw("U8", np.zeros(24 << 20, np.uint8))})
    whole = (tmp_path / "large.safetensors").read_bytes()
    hub.repositories["me/base"] = Repository(contents(tiny_base) | {"model.safetensors": whole})
    hub.cut = 15 << 20  # then the server fails altogether
    out = tmp_path / "out"
    refused(mtpd_process(hub, tmp_path / "home", "pull", "me/base", "--out", str(out)), "goes on where it stopped")
    assert not (out / "model.safetensors").exists()
    hub.failing = None
    hub.seen.clear()
    done = mtpd_process(hub, tmp_path / "home", "pull", "me/base", "--out", str(out))
    assert done.returncode == 0, done.stderr
    ranges = [r for method, path, r, _ in hub.seen if method == "GET" and path.endswith("model.safetensors")]
    assert len(ranges) == 1 and ranges[0] is not None and int(ranges[0][6:-1]) >= 10 << 20
    hub.seen.clear()
    assert mtpd(hub, tmp_path / "home", "pull", "me/base").returncode == 0  # into the cache this time
    assert mtpd(hub, tmp_path / "home", "pull", "me/base").returncode == 0
    assert len([p for method, p, _, _ in hub.seen if method == "GET" and p.endswith("model.safetensors")]) == 1
    assert (out / "model.safetensors").read_bytes() == whole


def test_what_was_damaged_on_the_way_is_not_kept(hub: Hub, tiny_base: Path, tmp_path: Path) -> None:
    write_raw(tmp_path / "large.safetensors", {"model.norm.weight": Raw("U8", np.zeros(9 << 20, np.uint8))})
    whole = (tmp_path / "large.safetensors").read_bytes()
    hub.repositories["me/base"] = Repository(contents(tiny_base) | {"model.safetensors": whole})
    partial = tmp_path / "out" / ".cache" / "mtpd" / f"{hashlib.sha256(whole).hexdigest()}.partial"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(b"x" * (4 << 20))
    arguments = ("pull", "me/base", "--out", str(tmp_path / "out"))
    refused(mtpd(hub, tmp_path / "home", *arguments), "damaged")
    assert not partial.exists()
    assert mtpd(hub, tmp_path / "home", *arguments).returncode == 0
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == whole


def test_info_downloads_no_weights(hub: Hub, tiny_base: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    hub.repositories["me/base"] = Repository(contents(tiny_base))
    hub.repositories["me/heads"] = Repository(contents(tiny_checkpoint))
    done = mtpd(hub, tmp_path, "info", "me/base", "--json")
    assert done.returncode == 0, done.stderr
    found, local = json.loads(done.stdout), json.loads(mtpd(hub, tmp_path, "inspect", str(tiny_base), "--json").stdout)
    assert found["kind"] == "model" and found["supported"]
    assert {k: v for k, v in found.items() if k != "name"} == {k: v for k, v in local.items() if k != "name"}
    assert "3 heads" in mtpd(hub, tmp_path, "info", "me/heads").stdout
    whole = [p for m, p, r, _ in hub.seen if m == "GET" and p.endswith(".safetensors") and r is None]
    assert whole == []


def test_push_uploads_what_belongs_and_a_card_without_secrets(
    hub: Hub, tiny_checkpoint: Path, tmp_path: Path, tiny_base: Path
) -> None:
    folder = tmp_path / "heads"
    folder.mkdir()
    for name, data in contents(tiny_checkpoint).items():
        (folder / name).write_bytes(data)
    config = json.loads((folder / "mtp_config.json").read_text())
    car = {"car": [0.8, 0.6, 0.5], "ar": [0.8, 0.75, 0.83], "tau": 2.9}
    config |= {"eval": {"validation": car}, "loss": {"loss": "mtpd", "alpha": [0.3], "beta": [0.5], "top_n": 9}}
    (folder / "mtp_config.json").write_text(json.dumps(config | {"data": {"train_tokens": 123, "train_sha256": "abc"}}))
    (folder / "train_options.json").write_text(json.dumps({"model": str(tmp_path), "note": TOKEN}))
    refused(mtpd(hub, tmp_path, "push", str(folder), "me/new", HF_TOKEN=TOKEN), "--base-id")
    arguments = ["push", str(folder), "me/new", "--base-id", "org/base", "--license", "apache-2.0"]
    dry = mtpd(hub, tmp_path, *arguments, "--dry-run")
    assert dry.returncode == 0 and "me/new" not in hub.repositories
    done = mtpd(hub, tmp_path, *arguments, HF_TOKEN=TOKEN)
    assert done.returncode == 0, done.stderr
    held = hub.repositories["me/new"].files
    assert set(held) == {".gitattributes", "README.md", "heads.safetensors", "mtp_config.json"}
    assert held["heads.safetensors"] == (folder / "heads.safetensors").read_bytes()
    assert json.loads(held["mtp_config.json"])["base"]["id"] == "org/base"
    shown = held["README.md"].decode()
    for word in ("base_model: org/base", "license: apache-2.0", "| 2 | 0.600 | 0.750 |", "tau", "mtpd generate me/new", "123"):
        assert word in shown, word
    everything = b"".join(held.values()).decode(errors="ignore") + done.stdout + done.stderr
    assert TOKEN not in everything and str(tmp_path) not in everything
    refused(mtpd(hub, tmp_path, *arguments, HF_TOKEN=TOKEN), "--overwrite")
    assert mtpd(hub, tmp_path, *arguments, "--overwrite", HF_TOKEN=TOKEN).returncode == 0
    hub.repositories["org/base"] = Repository(contents(tiny_base))
    done = mtpd(hub, tmp_path, "generate", "me/new", "-p", "abc", "-m", "6")  # what the card says
    assert done.returncode == 0, done.stderr


def test_what_is_pushed_names_no_folders_and_the_revision_of_the_base(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "heads"
    shutil.copytree(tiny_checkpoint, folder)
    config = json.loads((folder / "mtp_config.json").read_text())
    config["base"]["id"] = "org/base@v1"  # as `mtpd train --model org/base@v1` names it
    config["refit"] = {"from_fingerprint": "sha256:1", "from_base": "../my_base"}
    config["training"] = {"adapter_path": "my_lora", "seed": 0, "list": ["/home/me/x", "kept"], "w": "C:\\x", "note": "a/b c"}
    (folder / "mtp_config.json").write_text(json.dumps(config))
    files = prepare(folder, "me/new", None, None)
    pushed, shown = json.loads(bytes_of(files, "mtp_config.json")), bytes_of(files, "README.md").decode()
    assert pushed["base"]["id"] == "org/base" and pushed["base"]["revision"] == "v1"
    assert pushed["refit"] == {"from_fingerprint": "sha256:1"}
    assert pushed["training"] == {"seed": 0, "list": ["kept"], "note": "a/b c"}
    assert "base_model: org/base\n" in shown and "- base: `org/base`, revision `v1`" in shown
    assert "mtpd-mlx[" not in shown and 'pip install -e ".[mlx]"' in shown  # there is no such package to install
    assert parse_config(pushed, "").base.locate(tmp_path) == "org/base@v1"  # what `mtpd generate me/new` loads
    config["refit"]["from_base"] = "org/older"
    (folder / "mtp_config.json").write_text(json.dumps(config))
    assert json.loads(bytes_of(prepare(folder, "me/new", None, None), "mtp_config.json"))["refit"]["from_base"] == "org/older"
    other = json.loads(bytes_of(prepare(folder, "me/new", "org/other", None), "mtp_config.json"))
    assert other["base"]["id"] == "org/other" and other["base"]["revision"] is None
    named = json.loads(bytes_of(prepare(folder, "me/new", "org/other@main", None), "mtp_config.json"))
    assert named["base"]["revision"] == "main"


def bytes_of(files: dict[str, bytes | Path], name: str) -> bytes:
    held = files[name]
    assert isinstance(held, bytes)
    return held


def test_push_of_an_exported_folder(hub: Hub, tiny_checkpoint: Path, tmp_path: Path) -> None:
    from mtpd_onnx.export.export import export_checkpoint
    from mtpd_onnx.manifest import read_manifest

    export_checkpoint(tiny_checkpoint, tmp_path / "onnx")
    (tmp_path / "onnx" / "private.txt").write_text("mine")
    done = mtpd(hub, tmp_path, "push", str(tmp_path / "onnx"), "me/onnx", "--base-id", "org/base", HF_TOKEN=TOKEN)
    assert done.returncode == 0, done.stderr
    assert "private.txt" not in hub.repositories["me/onnx"].files
    assert mtpd(hub, tmp_path, "pull", "me/onnx", "--out", str(tmp_path / "again")).returncode == 0
    assert read_manifest(tmp_path / "again", verify=True).base["id"] == "org/base"
