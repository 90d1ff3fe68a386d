"""The adapter gives what mlx-lm's own model gives, for every family, and refuses what it cannot drive."""

import json
from pathlib import Path

import numpy as np
import pytest
from tiny import FAMILIES, LLAMA, VOCAB, write_base, write_quantised

from mtpd_mlx.model import base
from mtpd_mlx.model.base import check_supported, load_base
from mtpd_mlx.model.new_base import new_base
from mtpd_mlx.model.runtime import mx
from mtpd_mlx.text.messages import messages_on_stderr


@pytest.mark.parametrize("family", FAMILIES)
def test_adapter_equals_mlx_lm(family: str, tmp_path: Path) -> None:
    base = load_base(str(write_base(tmp_path, FAMILIES[family])))
    tokens = mx.array(np.random.default_rng(0).integers(0, VOCAB, (2, 17)))
    ours = base.logits(base.norm(base.trunk(tokens)))
    assert np.array_equal(np.array(ours), np.array(base.model(tokens)))


def test_cached_trunk_equals_whole_pass(tiny_base: Path) -> None:
    base = load_base(str(tiny_base))
    tokens = mx.array(np.random.default_rng(1).integers(0, VOCAB, (1, 20)))
    cache = base.make_cache()
    parts = [base.trunk(tokens[:, a:b], cache) for a, b in ((0, 9), (9, 10), (10, 20))]
    np.testing.assert_allclose(np.array(mx.concatenate(parts, axis=1)), np.array(base.trunk(tokens)), atol=2e-5)


def test_quantised_base_dequantises(tmp_path: Path) -> None:
    folder = write_quantised(tmp_path / "q", write_base(tmp_path / "plain"), 8, 64)
    packed, unpacked = load_base(str(folder)), load_base(str(folder), dequantize=True)
    assert packed.is_quantized and not unpacked.is_quantized
    tokens = mx.array([[5, 6, 7, 8]])
    np.testing.assert_allclose(
        np.array(packed.logits(packed.norm(packed.trunk(tokens)))),
        np.array(unpacked.logits(unpacked.norm(unpacked.trunk(tokens)))),
        atol=1e-3,
    )
    assert not any(hasattr(m, "scales") for m in packed.new_block().modules())


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"model_type": "mamba"}, "mamba"),
        ({"sliding_window": 32}, "sliding"),
        ({"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 8}, "sliding"),
        ({"model_type": None}, "None"),
        (
            {"model_type": "mixtral", "num_local_experts": 3, "num_experts_per_tok": 4},
            "num_experts_per_tok: got '4', expected 1..3",
        ),
        ({"model_type": "mixtral", "num_local_experts": 3, "num_experts_per_tok": "2"}, "num_experts_per_tok"),
        ({"model_type": "qwen3_moe", "num_experts": 9, "moe_intermediate_size": 1.5}, "moe_intermediate_size: got '1.5'"),
    ],
)
def test_unsupported_is_refused_in_one_line(change: dict, word: str) -> None:
    with pytest.raises(ValueError, match=word) as error:
        check_supported(LLAMA | change)
    assert "\n" not in str(error.value)


def test_code_that_a_model_brings_is_not_run(tmp_path: Path) -> None:
    """Refused, or loaded as the family that its model_type names."""
    folder = write_base(tmp_path / "base")
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    config, code = json.loads((folder / "config.json").read_text()), {"AutoModelForCausalLM": "evil.Model"}
    for brought, loads in (
        ({"auto_map": code}, False),
        ({"model_file": "evil.py", "architectures": ["LlamaForCausalLM"]}, False),
        ({"auto_map": code, "architectures": ["LlamaForCausalLM"]}, True),
    ):
        (folder / "config.json").write_text(json.dumps(config | brought))
        if loads:
            load_base(str(folder))
        else:
            with pytest.raises(ValueError, match="code of its own, which is never run"):
                load_base(str(folder))
    assert not (tmp_path / "ran").exists()


def test_a_first_run_on_cuda_says_why_it_waits(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    loaded = load_base(str(tiny_base))
    monkeypatch.setenv("MLX_PTX_CACHE_DIR", str(tmp_path / "ptx"))
    for cuda, said in ((False, 0), (True, 1)):
        monkeypatch.setattr(base, "on_cuda", lambda cuda=cuda: cuda)
        with messages_on_stderr():
            base.say_if_slow(loaded)
        assert capsys.readouterr().err.count("compiles its CUDA kernels") == said
    (tmp_path / "ptx").mkdir()
    (tmp_path / "ptx" / "kernel.ptx").touch()
    with messages_on_stderr():
        base.say_if_slow(loaded)
    assert capsys.readouterr().err == ""


def test_missing_and_broken_models(tmp_path: Path, tiny_base: Path) -> None:
    for name in ("./nowhere", "/nowhere/at/all", str(tmp_path)):
        with pytest.raises(ValueError, match=name):
            load_base(name)
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text(json.dumps(LLAMA))
    (broken / "model.safetensors").write_bytes((tiny_base / "model.safetensors").read_bytes()[:2000])
    with pytest.raises(ValueError, match="broken") as error:
        load_base(str(broken))
    assert "\n" not in str(error.value)


def test_missing_parameters_are_named(tiny_base: Path, tmp_path: Path) -> None:
    import shutil

    folder = Path(shutil.copytree(tiny_base, tmp_path / "cut"))
    weights = mx.load(str(folder / "model.safetensors"))
    assert isinstance(weights, dict)
    kept = {name: w for name, w in weights.items() if "mlp" not in name and "input_layernorm" not in name}
    mx.save_safetensors(str(folder / "model.safetensors"), kept)
    with pytest.raises(ValueError, match=r"Missing 8 parameters: model\.layers\.0\.input_layernorm\.weight, ") as error:
        load_base(str(folder))
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


@pytest.mark.parametrize("family", ["qwen2", "llama-bias"])
def test_a_new_base_is_what_its_seed_says(family: str) -> None:
    """Every rank makes its own: all tensors must be alike, biases among them."""
    from mlx.utils import tree_flatten

    first, again = (dict(tree_flatten(new_base(FAMILIES[family], 3).model.parameters())) for _ in range(2))
    assert any(name.endswith("bias") for name in first)
    assert [name for name, w in first.items() if not mx.array_equal(w, again[name])] == []
