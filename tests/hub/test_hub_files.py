"""Which files are fetched, several processes fetching one, and revisions with a slash."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hub_helpers import contents, mtpd, mtpd_process
from stub_hub import Hub, Repository

from mtpd_mlx.checkpoints.format import BaseRef
from mtpd_mlx.files.hub_ids import is_hub_id, split_revision
from mtpd_mlx.files.safetensors import Raw, write_raw

LARGE = 9 << 20


@pytest.fixture
def whole(hub: Hub, tiny_base: Path, tmp_path: Path) -> bytes:
    """The weights of me/base, large enough to be resumed."""
    write_raw(tmp_path / "large.safetensors", {"model.norm.weight": Raw("U8", np.zeros(LARGE, np.uint8))})
    data = (tmp_path / "large.safetensors").read_bytes()
    hub.repositories["me/base"] = Repository(contents(tiny_base) | {"model.safetensors": data})
    return data


def test_large_files_that_are_never_fetched(hub: Hub, whole: bytes, tmp_path: Path) -> None:
    """What only looks like a tokenizer or a licence, whatever its size."""
    names = ["tokenizer.pkl", "tokenizer.py", "tokenizer.bin", "tokenizer.pickle", "LICENSE.pt", "pytorch_model.bin"]
    for size in (100, LARGE):
        hub.repositories["me/base"].files |= {f"{size}{name}" if "pytorch" in name else name: b"x" * size for name in names}
        hub.seen.clear()
        assert mtpd(hub, tmp_path / f"home{size}", "pull", "me/base", "--out", f"out{size}").returncode == 0
        got = {path.rpartition("/")[2] for _, path, _, _ in hub.seen if "/resolve/" in path}
        assert "model.safetensors" in got and not got & set(names)
        assert not {f.name for f in (tmp_path / f"home{size}" / f"out{size}").iterdir()} & set(names)


def test_processes_that_pull_at_once_do_not_write_into_one_file(hub: Hub, whole: bytes, tmp_path: Path) -> None:
    """As the ranks of a run do."""
    hub.pause = 1.0
    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(lambda _: mtpd_process(hub, tmp_path, "pull", "me/base"), range(2)))
    assert [d.returncode for d in done] == [0, 0], [d.stderr for d in done]
    (blob,) = (tmp_path / "hub" / "models--me--base" / "snapshots").glob("*/model.safetensors")
    assert blob.read_bytes() == whole
    assert len([p for method, p, _, _ in hub.seen if method == "GET" and p.endswith("model.safetensors")]) == 1


def test_a_partial_file_that_is_too_long_is_begun_again(hub: Hub, whole: bytes, tmp_path: Path) -> None:
    partial = tmp_path / "out" / ".cache" / "mtpd" / f"{hashlib.sha256(whole).hexdigest()}.partial"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(whole + b"x")
    assert mtpd(hub, tmp_path, "pull", "me/base", "--out", "out").returncode == 0
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == whole and not partial.exists()


def test_a_revision_may_hold_a_slash() -> None:
    name = "owner/name@refs/pr/1"
    assert is_hub_id(name) and split_revision(name) == ("owner/name", "refs/pr/1")
    base = BaseRef(name, "sha256:0", "llama", 8, 8)
    assert (base.id, base.revision, base.named) == ("owner/name", "refs/pr/1", name)
    assert base.locate(Path("anywhere")) == name
    for local in ("./a/b@c/d", "/a/b", "a/b/c", "a/b/c@d", "~/a", "a", "@a/b", "a/@b"):
        assert not is_hub_id(local), local
