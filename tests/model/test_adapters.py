"""mlx-lm adapters as part of a base: on MLX as mlx-lm applies them, in ONNX the same numbers, and never mistaken."""

import json
from pathlib import Path

import numpy as np
import pytest
from helpers.adapters import write_adapter
from mtpd_onnx.export.export import export_checkpoint
from mtpd_onnx.runtime.open import open_folder
from mtpd_onnx.runtime.plain import PlainBackend
from tiny import VOCAB, write_base, write_quantised

from mtpd_mlx.checkpoints.adapter_format import fingerprint_model, read_adapter
from mtpd_mlx.checkpoints.format import CheckpointConfig
from mtpd_mlx.cli import main
from mtpd_mlx.model.base import Base, load_base
from mtpd_mlx.model.heads import init_heads
from mtpd_mlx.model.load_save import load_checkpoint, reference_base, save_heads
from mtpd_mlx.model.runtime import mx

TEXT = np.random.default_rng(0).integers(0, VOCAB, 20).tolist()


def logits(base: Base) -> np.ndarray:
    return np.array(base.logits(base.norm(base.trunk(mx.array([TEXT])))))[0]


def save(folder: Path, base: Base, named: Path) -> Path:
    heads = init_heads(base, 2, "postnorm", seed=1)
    save_heads(folder, heads, CheckpointConfig(2, "postnorm", reference_base(base, folder, str(named))))
    return folder


@pytest.mark.parametrize("kind", ["lora", "dora", "full", "embedding", "quantised"])
def test_adapted_base_is_mlx_lm_s_and_its_export(kind: str, tmp_path: Path) -> None:
    from mlx_lm.utils import load_adapters

    folder = write_base(tmp_path / "base")
    if kind == "quantised":
        folder = write_quantised(tmp_path / "q", folder, 4)
    keys = ["model.embed_tokens", "self_attn.v_proj"] if kind == "embedding" else None
    adapter = write_adapter(tmp_path / "adapter", folder, keys=keys, kind="dora" if kind == "dora" else "lora")
    if kind == "full":
        changed = {"model.layers.1.mlp.up_proj.weight": mx.random.normal((128, 64)), "model.norm.weight": mx.full((64,), 1.5)}
        mx.save_safetensors(str(adapter / "adapters.safetensors"), changed)
        (adapter / "adapter_config.json").write_text(json.dumps({"fine_tune_type": "full"}))
    plain = load_base(str(folder))
    unadapted = logits(plain)
    load_adapters(plain.model, str(adapter))
    expected = np.array(plain.model(mx.array([TEXT])))[0]
    assert np.abs(expected - unadapted).max() > 0.05
    base = load_base(str(folder), adapter=adapter)
    np.testing.assert_allclose(logits(base), expected, rtol=0, atol=2e-4)
    checkpoint = save(tmp_path / "heads", base, folder)
    if kind == "dora":
        with pytest.raises(ValueError, match="DoRA"):
            export_checkpoint(checkpoint, tmp_path / "onnx")
        return
    export_checkpoint(checkpoint, tmp_path / "onnx")
    backend = open_folder(tmp_path / "onnx", provider="cpu", plain=True, num_threads=1)
    assert isinstance(backend, PlainBackend)
    np.testing.assert_allclose(backend.logits(TEXT), expected, rtol=0, atol=2e-4)


def test_adapters_are_part_of_the_identity(tmp_path: Path) -> None:
    folder = write_base(tmp_path / "base")
    one, two = (write_adapter(tmp_path / f"a{seed}", folder, seed) for seed in (0, 1))
    assert len({fingerprint_model(folder, a) for a in (None, one, two)}) == 3
    checkpoint = save(tmp_path / "heads", load_base(str(folder), adapter=one), folder)
    base, _, config = load_checkpoint(checkpoint)  # finds the adapter that it was saved with
    assert base.adapter is not None and config.base.adapter == "../a0"
    with pytest.raises(ValueError, match="another base"):
        load_checkpoint(checkpoint, adapter=two)
    assert load_checkpoint(checkpoint, str(folder))[0].adapter == base.adapter  # the same base named: with their adapter
    assert load_checkpoint(checkpoint, str(folder), allow_mismatch=True)[0].adapter is None  # another one: as it is
    load_checkpoint(checkpoint, adapter=two, allow_mismatch=True)


def test_heads_train_on_an_adapted_base(text_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = write_base(tmp_path / "base")
    adapter, out = write_adapter(tmp_path / "adapter", folder), tmp_path / "out"
    options = [
        "--iters",
        "40",
        "--loss",
        "kl",
        "--max-seq-length",
        "32",
        "--batch-size",
        "2",
        "--learning-rate",
        "3e-3",
        "--warmup",
        "1",
    ]
    arguments = ["--model", str(folder), "--adapter-path", str(adapter), "--data", str(text_data), "--out", str(out)]
    assert main(["train", *arguments, *options, "--num-heads", "1"]) == 0
    assert load_checkpoint(out)[0].adapter is not None
    cache, again = tmp_path / "cache", tmp_path / "again"
    assert main(["cache", *arguments[:6], "--out", str(cache), "--max-seq-length", "32"]) == 0
    steps = ["--iters", "4", "--loss", "kl", "--batch-size", "2", "--learning-rate", "3e-3", "--num-heads", "1"]
    assert main(["train", "--cache", str(cache), *steps, "--out", str(again)]) == 0  # it says with which adapter it was made
    assert load_checkpoint(again)[2].base.fingerprint == load_checkpoint(out)[2].base.fingerprint


def test_bad_adapters_are_refused_in_one_line(tmp_path: Path) -> None:
    folder = write_base(tmp_path / "base")
    other = write_base(tmp_path / "other", {**load_base(str(folder)).config, "hidden_size": 32, "head_dim": 8})
    peft = tmp_path / "peft"
    peft.mkdir()
    (peft / "adapter_config.json").write_text("{}")
    (peft / "adapter_model.safetensors").write_bytes(b"")
    cut = write_adapter(tmp_path / "cut", folder)
    (cut / "adapters.safetensors").write_bytes((cut / "adapters.safetensors").read_bytes()[:-3])
    odd = write_adapter(tmp_path / "odd", folder)
    (odd / "adapter_config.json").write_text('{"lora_parameters": {"alpha": 1}, "num_layers": 2}')
    wrong = write_adapter(tmp_path / "wrong", other)
    for adapter, word in ((tmp_path / "no", "no such"), (peft, "peft"), (cut, "truncated"), (odd, "scale"), (wrong, "not fit")):
        with pytest.raises(ValueError, match=word) as error:
            load_base(str(folder), adapter=adapter)
        assert "\n" not in str(error.value)


def test_a_rank_that_is_no_number_is_one_line(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "adapter", write_base(tmp_path / "base"))
    text = (folder / "adapter_config.json").read_text()
    (folder / "adapter_config.json").write_text(text.replace('"rank": 4', '"rank": Infinity'))
    with pytest.raises(ValueError, match=r"adapter_config\.json: cannot convert float infinity"):
        read_adapter(folder)
