"""`mtpd train --cache`: the same losses as with the base in memory, from its stored states alone."""

import json
from pathlib import Path

import numpy as np
import pytest

from mtpd_mlx.cli import main
from mtpd_mlx.trainer import LOG_NAME

FLAGS = ["--iters", "5", "--batch-size", "2", "--num-heads", "2", "--warmup", "1", "--learning-rate", "1e-2"]
FLAGS += ["--steps-per-report", "1", "--steps-per-eval", "2", "--save-every", "2", "--val-batches", "2"]


@pytest.fixture
def cache(tiny_base: Path, text_data: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "cache"
    args = ["cache", "--model", str(tiny_base), "--data", str(text_data), "--out", str(folder), "--top-n", "9"]
    assert main([*args, "--max-seq-length", "24", "--batch-size", "2"]) == 0
    return folder


def figures(out: Path) -> list[list[float]]:
    rows = [json.loads(line) for line in (out / LOG_NAME).read_text().splitlines()]
    return [[r["iter"], r["main_loss"], *r["head_loss"], *r["car"]] for r in rows if "loss" in r] + [
        [r["iter"], r["valid"]["main_loss"], *r["valid"]["head_loss"], *r["valid"]["car"]] for r in rows if "valid" in r
    ]


@pytest.mark.parametrize(
    "loss", [("mtpd", "9"), ("mtpd", "5"), ("mtpd", "10000"), ("kl", "9"), ("ce", "9"), ("lk", "9"), ("tv", "9")]
)
def test_same_losses_as_with_the_base(
    loss: tuple[str, str], tiny_base: Path, text_data: Path, cache: Path, tmp_path: Path
) -> None:
    extra = ["--loss", loss[0], "--top-n", loss[1]]
    live = ["--model", str(tiny_base), "--data", str(text_data), "--max-seq-length", "24"]
    assert main(["train", *live, "--out", str(tmp_path / "live"), *FLAGS, *extra]) == 0
    assert main(["train", "--cache", str(cache), "--out", str(tmp_path / "cached"), *FLAGS, *extra]) == 0
    for a, b in zip(figures(tmp_path / "live"), figures(tmp_path / "cached"), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-5)
    records = [json.loads((tmp_path / name / "mtp_config.json").read_text()) for name in ("live", "cached")]
    assert records[0]["data"] == records[1]["data"] and records[0]["base"] == records[1]["base"]


def test_interrupted_cached_run_resumes(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mtpd_mlx.train_step import Stepper

    step, calls = Stepper.step, []

    def interrupted(self: Stepper, batches: list) -> tuple:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return step(self, batches)

    out = tmp_path / "out"
    assert main(["train", "--cache", str(cache), "--out", str(tmp_path / "whole"), *FLAGS]) == 0
    monkeypatch.setattr(Stepper, "step", interrupted)
    assert main(["train", "--cache", str(cache), "--out", str(out), *FLAGS]) == 130
    monkeypatch.undo()
    assert main(["train", "--resume", "--out", str(out)]) == 0
    np.testing.assert_allclose(figures(out), figures(tmp_path / "whole"), atol=1e-6)


def test_extending_from_a_cache(tiny_base: Path, text_data: Path, cache: Path, tmp_path: Path) -> None:
    live = ["--model", str(tiny_base), "--data", str(text_data), "--max-seq-length", "24"]
    assert main(["train", "--cache", str(cache), "--out", str(tmp_path / "two"), *FLAGS]) == 0
    steps = [f for i, f in enumerate(FLAGS) if "--num-heads" not in FLAGS[max(i - 1, 0) : i + 1]]
    for name, given in (("live", live), ("cached", ["--cache", str(cache)])):
        assert main(["extend", str(tmp_path / "two"), "--to", "3", *given, "--out", str(tmp_path / name), *steps]) == 0
    for a, b in zip(figures(tmp_path / "live"), figures(tmp_path / "cached"), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-5)


def test_refusals(tiny_base: Path, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    from tiny import LLAMA, write_base

    def error(*args: str) -> str:
        assert main(["train", "--cache", str(cache), "--out", str(tmp_path / "out"), *FLAGS, *args]) == 1
        return capsys.readouterr().err.strip().splitlines()[-1]

    assert "--train joint" in error("--train", "joint")
    other = write_base(tmp_path / "other", LLAMA, seed=5)
    assert "another base" in error("--model", str(other))
    shard = next(cache.glob("train-*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-10])
    assert "truncated" in error()
    shard.unlink()
    assert "missing shard" in error()
