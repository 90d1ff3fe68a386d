"""Faults of a folder of heads for vLLM, each in one line; vLLM itself is not needed."""

import json
import logging
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from mtpd_vllm.checks import check_fit, is_untested, note_on_base, version_problem
from tiny import LLAMA, write_base, write_checkpoint

from mtpd_mlx.cli import main

ONE_LINE = pytest.mark.parametrize("version", ["0.31.4", "0.9.2", "0.20.0+cu130"])


@ONE_LINE
def test_an_old_vllm_is_named_and_still_serves_other_models(
    version: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing of it is touched: no attribute but the version and the logger."""
    import mtpd_vllm

    fake, fake_logger = ModuleType("vllm"), ModuleType("vllm.logger")
    fake.__version__ = version  # type: ignore[attr-defined]
    fake_logger.init_logger = logging.getLogger  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", fake)
    monkeypatch.setitem(sys.modules, "vllm.logger", fake_logger)
    with caplog.at_level(logging.WARNING, "vllm.mtpd_vllm"):
        mtpd_vllm.register()
    assert [r.getMessage() for r in caplog.records] == [
        f"mtpd_vllm: got vLLM {version}, expected 0.32 or later: heads are not available"
    ]


def test_versions_from_which_heads_run() -> None:
    for version in ("0.32.0", "0.33.0rc1", "0.33.0+cpu", "1.0", "dev", "0.1.dev1+g123", "0.0.0"):
        assert version_problem(version) is None, version
    assert is_untested("0.34.0") and is_untested("1.0.0") and not is_untested("0.33.9") and not is_untested("dev")


def written(tmp_path: Path, count: int = 2) -> tuple[Path, Any]:
    """A base and the config.json of its heads."""
    base = write_base(tmp_path / "base", LLAMA)
    checkpoint = write_checkpoint(tmp_path / "heads", base, count)
    out = tmp_path / "out"
    assert main(["export-heads", str(checkpoint), "--format", "vllm", "--out", str(out)]) == 0
    return base, json.loads((out / "config.json").read_text())


def test_a_model_of_other_sizes_is_refused(tmp_path: Path) -> None:
    base, told = written(tmp_path)
    heads, target = SimpleNamespace(**told), json.loads((base / "config.json").read_text())
    check_fit(heads, SimpleNamespace(**target), 2)
    for name in ("hidden_size", "num_hidden_layers", "vocab_size"):
        other = SimpleNamespace(**target | {name: 2 * target[name]})
        with pytest.raises(
            ValueError, match=f"got a model with {name} {2 * target[name]}, expected {target[name]}.*base"
        ) as told_so:
            check_fit(heads, other, 2)
        assert "\n" not in str(told_so.value)


def test_more_drafts_than_heads_are_refused(tmp_path: Path) -> None:
    base, told = written(tmp_path, 2)
    target = SimpleNamespace(**json.loads((base / "config.json").read_text()))
    with pytest.raises(ValueError, match="got num_speculative_tokens 4, expected at most 2"):
        check_fit(SimpleNamespace(**told), target, 4)


def test_other_weights_of_the_same_sizes_are_said(tmp_path: Path) -> None:
    base, told = written(tmp_path)
    assert note_on_base(told["mtpd_base"], str(base)) is None
    assert note_on_base(told["mtpd_base"], "owner/name") is None  # a hub id: nothing is fetched for this
    other = write_base(tmp_path / "other", LLAMA, seed=7)
    said = note_on_base(told["mtpd_base"], str(other))
    assert said is not None and str(other) in said and "../base" in said and "mtpd refit" in said and "\n" not in said
    known = told["mtpd_base"] | {"same_weights": [told["mtpd_base"]["fingerprint"]], "fingerprint": "sha256:" + "0" * 64}
    assert note_on_base(known, str(base)) is None  # another form of the same weights
    (other / "model.safetensors").write_bytes(b"damaged")
    said = note_on_base(told["mtpd_base"], str(other))
    assert said is not None and "cannot tell" in said and "\n" not in said


def test_a_draft_vocabulary_is_left_out_aloud(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    base = write_base(tmp_path / "base", LLAMA)
    checkpoint = write_checkpoint(tmp_path / "heads", base, 2, draft_tokens=list(range(0, 40, 2)))
    assert main(["export-heads", str(checkpoint), "--format", "vllm", "--out", str(tmp_path / "out")]) == 0
    assert "draft vocabulary of 20 tokens has no place in this layout" in capsys.readouterr().out
