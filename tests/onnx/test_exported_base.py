"""The manifest names the base that was exported, and parity compares with that one."""

import json
from pathlib import Path

import pytest
from tiny import write_base, write_checkpoint

from mtpd_mlx.checkpoints.fingerprint import fingerprint_base
from mtpd_mlx.cli import main


def test_another_base_is_recorded_and_parity_asks_for_it(
    tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    other, checkpoint = write_base(tmp_path / "other", seed=7), write_checkpoint(tmp_path / "heads", tiny_base, 1)
    prompts, onnx = tmp_path / "p.jsonl", tmp_path / "onnx"
    prompts.write_text('{"prompt": "abc"}\n')
    asked = ["--model", str(other), "--allow-base-mismatch"]
    assert main(["export", str(checkpoint), "--out", str(onnx), *asked]) == 0
    base = json.loads((onnx / "manifest.json").read_text())["base"]
    assert base["fingerprint"] == fingerprint_base(other) != fingerprint_base(tiny_base)
    assert base["id"] == str(other.resolve())
    parity = ["parity", str(checkpoint), str(onnx), "--prompts", str(prompts), "--max-tokens", "4"]
    capsys.readouterr()
    assert main(parity) == 1
    assert "was exported from another base" in capsys.readouterr().err
    assert main([*parity, *asked]) == 0
    assert "1 of 1 prompts identical" in capsys.readouterr().out


def test_a_base_that_changed_since_keeps_its_name(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    checkpoint = write_checkpoint(tmp_path / "heads", base, 1)
    own = json.loads((checkpoint / "mtp_config.json").read_text())["base"]
    assert main(["export", str(checkpoint), "--out", str(tmp_path / "same")]) == 0
    assert json.loads((tmp_path / "same" / "manifest.json").read_text())["base"]["fingerprint"] == own["fingerprint"]
    write_base(base, seed=3)
    assert main(["export", str(checkpoint), "--out", str(tmp_path / "onnx"), "--allow-base-mismatch"]) == 0
    recorded = json.loads((tmp_path / "onnx" / "manifest.json").read_text())["base"]
    assert recorded["fingerprint"] == fingerprint_base(base) and recorded["id"] == own["id"]
