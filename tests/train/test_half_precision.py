"""A bf16 base, as most Macs hold it: trains in bf16 with float32 heads, decodes in its own type."""

import json
from pathlib import Path

import pytest
from tiny import write_base

from mtpd_mlx.cli import main
from mtpd_mlx.model.load_save import load_arrays, load_checkpoint, load_for_decoding
from mtpd_mlx.model.runtime import mx


@pytest.fixture
def half_base(tmp_path: Path) -> Path:
    folder = write_base(tmp_path / "base")
    arrays = load_arrays(folder / "model.safetensors")
    mx.eval(arrays)
    mx.save_safetensors(str(folder / "model.safetensors"), {n: w.astype(mx.bfloat16) for n, w in arrays.items()})
    return folder


def test_bf16_base_trains_extends_and_decodes(half_base: Path, text_data: Path, tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    small = ["--iters", "4", "--batch-size", "2", "--max-seq-length", "32", "--learning-rate", "1e-3", "--warmup", "0"]
    small += ["--val-batches", "1"]
    data = ["--data", str(text_data), "--compute-dtype", "bfloat16", *small]
    heads = tmp_path / "heads"
    assert main(["train", "--model", str(half_base), "--num-heads", "2", "--out", str(heads), *data]) == 0
    assert all(w.dtype == mx.float32 for w in load_arrays(heads / "heads.safetensors").values())
    assert main(["extend", str(heads), "--to", "4", "--out", str(tmp_path / "long"), *data]) == 0
    base, loaded, _ = load_for_decoding(tmp_path / "long", dtype="bfloat16")
    assert base.dtype == mx.bfloat16 and loaded.heads[3].eh_proj.weight.dtype == mx.bfloat16
    assert load_checkpoint(tmp_path / "long")[1].heads[0].eh_proj.weight.dtype == mx.float32
    capsys.readouterr()
    assert main(["generate", str(tmp_path / "long"), "-p", "abc", "-m", "12", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["tokens"]) == 12
    assert main(["export", str(heads), "--out", str(tmp_path / "onnx")]) == 0
