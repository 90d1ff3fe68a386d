"""Against onnxruntime-genai itself, where it, torch and transformers are installed (they are no dependencies): pip install
onnxruntime-genai torch transformers."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from mtpd_onnx.peer.genai import GenaiPeer

from mtpd_mlx.speculative.loop import generate

MISSING = [m for m in ("onnxruntime_genai", "torch", "transformers", "onnxscript") if find_spec(m) is None]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")
ROOT = Path(__file__).parent.parent.parent
DIMS = {"hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 128, "num_attention_heads": 4}
DIMS |= {"num_key_value_heads": 2, "rms_norm_eps": 1e-5, "vocab_size": 4096, "max_position_embeddings": 256}
DIMS |= {"rope_theta": 1e4, "eos_token_id": 0}
PROMPTS = [[7, 1, 3000, 12, 5], [9, 8]]


def tool(module: str, *arguments: object) -> None:
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'export'}"}
    command = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def random_model(folder: Path, family: str, tied: bool) -> Path:
    config = DIMS | {"model_type": family, "tie_word_embeddings": tied, "attention_bias": family == "llama"}
    if family != "qwen2":  # we take its head_dim to be hidden_size / heads
        config["head_dim"] = 32
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    options = ("--dtype", "fp32", "--scale", 10, "--num-heads", 2)
    tool("tools.random_model", folder / "config.json", folder / "model", *options)
    return folder / "model"


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_fill_is_the_builders_file_and_both_decode_as_we_do(tmp_path: Path, family: str, tied: bool) -> None:
    from mtpd_onnx.export.export import export_checkpoint
    from mtpd_onnx.runtime.open import open_folder

    from mtpd_mlx.options.export import ExportOptions

    model = random_model(tmp_path, family, tied)
    for precision, provider in (("fp32", "cpu"), ("fp16", "cuda")):
        built, skeleton, filled = (tmp_path / f"{name}-{precision}" for name in ("built", "skeleton", "filled"))
        tool("tools.genai_peer", "build", model / "base", built, "--precision", precision, "--provider", provider)
        tool("tools.genai_peer", "skeleton", built, model / "base", skeleton)
        tool("tools.genai_peer", "fill", skeleton, model / "base", filled)
        assert sum(file.stat().st_size for file in skeleton.iterdir()) < 400_000
        for file in built.iterdir():
            assert file.read_bytes() == (filled / file.name).read_bytes(), file.name
    assert json.loads((built / "genai_config.json").read_text())["model"]["decoder"]["session_options"]["provider_options"]
    peers = [GenaiPeer(tmp_path / name, 64) for name in ("built-fp32", "filled-fp32")]
    expected, got = ([peer.generate(prompt, 20)[0] for prompt in PROMPTS] for peer in peers)
    assert got == expected and len(set(expected[0])) > 3
    export_checkpoint(model / "heads", tmp_path / "ours", ExportOptions(capacity=64))
    ours = open_folder(tmp_path / "ours", provider="cpu", plain=True)
    for prompt, tokens in zip(PROMPTS, expected, strict=True):
        ours.rewind_to(0)
        assert [t for chunk in generate(ours, prompt, max_tokens=20) for t in chunk.tokens] == tokens


def test_int4_decodes(tmp_path: Path) -> None:
    model = random_model(tmp_path, "llama", True)
    tool("tools.genai_peer", "build", model / "base", tmp_path / "int4", "--precision", "int4")
    peer = GenaiPeer(tmp_path / "int4", capacity=64)
    first = peer.generate(PROMPTS[0], 20)[0]
    assert len(first) == 20 and peer.generate(PROMPTS[0], 20)[0] == first
