"""What an extension refuses before it trains anything."""

from pathlib import Path
from typing import Any

import pytest
from helpers.runs import flags
from tiny import write_checkpoint

from mtpd_mlx.cli import main

FLAGS = flags(iters=2, num_heads=None)


@pytest.mark.parametrize("name", ["alpha", "beta"])
def test_weights_per_head_must_fit_every_stage(
    name: str, tiny_base: Path, text_data: Path, tmp_path: Path, capsys: Any
) -> None:
    """2 -> 5 heads is 2 new ones, then 1: not found out after the first stage is trained."""
    checkpoint, out = write_checkpoint(tmp_path / "two", tiny_base, num_heads=2), tmp_path / "out"
    arguments = ["extend", str(checkpoint), "--to", "5", "--data", str(text_data), "--out", str(out), *FLAGS]
    assert main([*arguments, f"--{name}", "0.3", "0.2"]) == 1
    assert f"--{name} (new heads of stage 5): got 2 values" in capsys.readouterr().err
    assert not out.exists()
    arguments[3] = "4"
    assert main([*arguments, f"--{name}", "0.3", "0.2"]) == 0


def test_a_checkpoint_is_not_extended_in_place(tiny_base: Path, text_data: Path, tmp_path: Path, capsys: Any) -> None:
    """The copies that it begins with would be in place of the heads that --resume needs."""
    checkpoint = write_checkpoint(tmp_path / "two", tiny_base, num_heads=2)
    before = (checkpoint / "heads.safetensors").read_bytes()
    arguments = ["extend", str(checkpoint), "--to", "4", "--data", str(text_data), "--out", str(checkpoint), *FLAGS]
    assert main([*arguments, "--overwrite"]) == 1
    assert "is the checkpoint itself" in capsys.readouterr().err
    assert (checkpoint / "heads.safetensors").read_bytes() == before
