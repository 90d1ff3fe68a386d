"""tools/random_model.py: what it writes loads as any other model and its heads."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.tools import tool
from tiny import FAMILIES, write_tokenizer

ROOT = Path(__file__).parent.parent.parent


def as_a_process(*arguments: object) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'export'}"}
    command = [sys.executable, "-m", "tools.random_model", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("family", ["llama-untied", "llama-bias", "qwen2", "qwen3"])
def test_loads_with_its_heads(tmp_path: Path, family: str) -> None:
    from mtpd_mlx.model.load_save import load_checkpoint
    from mtpd_mlx.model.runtime import mx

    (tmp_path / "config.json").write_text(json.dumps(FAMILIES[family]))
    write_tokenizer(tmp_path / "tokenizer")
    options = ("--tokenizer", tmp_path / "tokenizer", "--num-heads", 3, "--seed", 5)
    for out in ("a", "b"):
        done = tool("random_model", tmp_path / "config.json", tmp_path / out, *options)
        assert done.returncode == 0, done.stderr
    base, heads, config = load_checkpoint(tmp_path / "a" / "heads")
    assert config.num_heads == 3 and base.dtype == mx.float16
    assert [s.shape for s in heads.cascade(base, base.trunk(mx.array([[1, 2, 3, 4]])), mx.array([[1, 2, 3, 4]]))] == [
        (1, 4, 64)
    ] * 3
    std = float(mx.std(base.layers[0].self_attn.q_proj.weight.astype(mx.float32)))
    assert 0.018 < std < 0.022
    assert mx.array_equal(heads.heads[1].eh_proj.weight[:, :64], mx.eye(64))
    for name in ("base/model.safetensors", "heads/heads.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_refuses_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    for done in (
        as_a_process(tmp_path / "absent.json", tmp_path / "a"),
        tool("random_model", tmp_path / "config.json", tmp_path / "b"),
    ):
        assert done.returncode == 1 and len(done.stderr.splitlines()) == 1, done.stderr
