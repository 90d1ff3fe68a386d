"""`mtpd train --cache`: the same losses as with the base in memory, from its stored states alone."""

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.runs import assert_same_run, error_line, flags

from mtpd_mlx.cli import main

FLAGS = flags(iters=4, warmup=1, learning_rate="1e-2", max_seq_length=None, steps_per_eval=2, val_batches=2)


def make_cache(base: Path, data: Path, folder: Path, top_n: str = "9") -> Path:
    args = ["cache", "--model", str(base), "--data", str(data), "--out", str(folder), "--top-n", top_n]
    assert main([*args, "--max-seq-length", "24", "--batch-size", "2"]) == 0
    return folder


@pytest.fixture
def cache(tiny_base: Path, text_data: Path, tmp_path: Path) -> Path:
    return make_cache(tiny_base, text_data, tmp_path / "cache")


WHOLE, NONE = "97", "0"  # of the vocabulary's logits, in the cache
COMPUTED = "computed from the hidden states"


@pytest.mark.parametrize(
    ("loss", "top_n", "held", "says"),
    [
        ("mtpd", "5", "9", "5 stored logits a position"),
        ("mtpd", "10000", "9", f"{COMPUTED} of the cache: 97 logits a position are wanted, 9 are stored; --top-n 9 would use"),
        ("mtpd", "5", NONE, COMPUTED),
        ("kl", "9", "9", "9 stored"),
        ("ce", "9", NONE, ""),
        ("lk", "9", "9", f"{COMPUTED} of the cache: 97 logits a position are wanted, 9 are stored"),
        ("lk", "9", WHOLE, "97 stored"),
        ("tv", "9", WHOLE, "97 stored"),
    ],
)
def test_same_losses_as_with_the_base(
    loss: str, top_n: str, held: str, says: str, tiny_base: Path, text_data: Path, tmp_path: Path, capsys: Any
) -> None:
    cache = make_cache(tiny_base, text_data, tmp_path / "cache", held)
    capsys.readouterr()
    extra = ["--loss", loss, "--top-n", top_n]
    live = ["--model", str(tiny_base), "--data", str(text_data), "--max-seq-length", "24"]
    assert main(["train", *live, "--out", str(tmp_path / "live"), *FLAGS, *extra]) == 0
    assert main(["train", "--cache", str(cache), "--out", str(tmp_path / "cached"), *FLAGS, *extra]) == 0
    assert_same_run(tmp_path / "live", tmp_path / "cached", rtol=2e-4, atol=1e-5)
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("teacher: ")]
    assert [says in line for line in said] == [True] * bool(says), said
    records = [json.loads((tmp_path / name / "mtp_config.json").read_text()) for name in ("live", "cached")]
    assert all(records[0][part] == records[1][part] for part in ("data", "base", "training"))


def test_hidden_states_only_take_less(tiny_base: Path, text_data: Path, tmp_path: Path) -> None:
    from mtpd_mlx.teacher_cache.format import bytes_per_token, read_index
    from mtpd_mlx.teacher_cache.reader import CachedDataset

    folder = make_cache(tiny_base, text_data, tmp_path / "cache", "0")
    assert bytes_per_token(read_index(folder).layout) == 4 + 4 + 1 + 64 * 4
    batch = CachedDataset(folder, "train", 2, 0).batch(0)
    assert batch.hidden.shape == (2, 24, 64) and batch.top_logits is batch.main_loss is None


def test_interrupted_cached_run_resumes(cache: Path, tmp_path: Path, stop_at: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    assert main(["train", "--cache", str(cache), "--out", str(tmp_path / "whole"), *FLAGS]) == 0
    stop_at(3)
    assert main(["train", "--cache", str(cache), "--out", str(out), *FLAGS]) == 130
    monkeypatch.undo()
    assert main(["train", "--resume", "--out", str(out)]) == 0
    assert_same_run(out, tmp_path / "whole")


def test_extending_from_a_cache(tiny_base: Path, text_data: Path, cache: Path, tmp_path: Path) -> None:
    live = ["--model", str(tiny_base), "--data", str(text_data), "--max-seq-length", "24"]
    assert main(["train", "--cache", str(cache), "--out", str(tmp_path / "two"), *FLAGS]) == 0
    steps = flags(iters=4, warmup=1, learning_rate="1e-2", max_seq_length=None, num_heads=None)
    for name, given in (("live", live), ("cached", ["--cache", str(cache)])):
        assert main(["extend", str(tmp_path / "two"), "--to", "3", *given, "--out", str(tmp_path / name), *steps]) == 0
    assert_same_run(tmp_path / "live", tmp_path / "cached", rtol=2e-4, atol=1e-5)


def test_refusals(tiny_base: Path, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    from tiny import LLAMA, write_base

    def error(*args: str) -> str:
        assert main(["train", "--cache", str(cache), "--out", str(tmp_path / "out"), *FLAGS, *args]) == 1
        return error_line(capsys)

    assert "--train joint" in error("--train", "joint")
    for name, value, words in (
        ("--max-seq-length", "32", "got 32, expected 24"),
        ("--no-pack", "", "got False, expected True"),
        ("--data-weights", "1", "not with --cache"),
        ("--tokenizer", str(tiny_base), "not with --cache"),
    ):
        assert words in error(name, *[value] * bool(value))
    other = write_base(tmp_path / "other", LLAMA, seed=5)
    assert "another base" in error("--model", str(other))
    shard = next(cache.glob("train-*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-10])
    assert "truncated" in error()
    shard.unlink()
    assert "missing shard" in error()
