"""Commands that use the hub where its client is not installed."""

import os
from pathlib import Path

import pytest
from hub_helpers import ROOT, mtpd_process, refused
from stub_hub import Hub


@pytest.mark.parametrize(
    "command", [["inspect", "me/base"], ["pull", "me/base"], ["push", "HEADS", "me/x", "--base-id", "o/b"]]
)
def test_without_huggingface_hub(command: list[str], hub: Hub, tiny_checkpoint: Path, tmp_path: Path) -> None:
    blocked = tmp_path / "blocked" / "huggingface_hub"
    blocked.mkdir(parents=True)
    (blocked / "__init__.py").write_text("raise ModuleNotFoundError(\"No module named 'huggingface_hub'\")\n")
    path = os.pathsep.join(map(str, (blocked.parent, ROOT, ROOT / "export")))
    words = [str(tiny_checkpoint) if word == "HEADS" else word for word in command]
    done = mtpd_process(hub, tmp_path, *words, PYTHONPATH=path)
    refused(done, "pip install huggingface_hub")
    assert ("no such folder; as a hub id" in done.stderr) == (command[0] == "inspect")
