"""MLX-quantised bases, 3 to 8 bits and mixed, of families that scale and cap: heads, exact rounds, the same numbers in ONNX."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.decode import oracle
from helpers.decode import text as written
from mtpd_onnx.export.export import export_checkpoint
from mtpd_onnx.runtime.open import open_folder
from mtpd_onnx.runtime.plain import PlainBackend
from tiny import LLAMA, VOCAB, write_base, write_checkpoint, write_quantised

from mtpd_mlx.cli import main
from mtpd_mlx.measure.step_model import MLXModel
from mtpd_mlx.model.base import load_base
from mtpd_mlx.model.load_save import load_checkpoint
from mtpd_mlx.options.export import ExportOptions
from mtpd_mlx.speculative.rounds import StepBackend

GEMMA2 = LLAMA | {"model_type": "gemma2", "query_pre_attn_scalar": 16, "sliding_window": 7, "hidden_act": "gelu_pytorch_tanh"}
GRANITE = LLAMA | {"model_type": "granite", "embedding_multiplier": 3.0, "attention_multiplier": 0.2, "logits_scaling": 0.5}
GRANITE |= {"residual_multiplier": 0.5}
QWEN3_MOE = LLAMA | {"model_type": "qwen3_moe", "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
QWEN3_MOE |= {"norm_topk_prob": True}
GPT_OSS = LLAMA | {"model_type": "gpt_oss", "num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 64}
GPT_OSS |= {"tie_word_embeddings": False, "sliding_window": 7}
GEMMA4 = LLAMA | {"model_type": "gemma4_text", "num_key_value_heads": 2, "num_global_key_value_heads": 1, "head_dim": 16}
GEMMA4 |= {"global_head_dim": 32, "attention_k_eq_v": True, "hidden_size_per_layer_input": 0, "sliding_window": 7}
GEMMA4 |= {"layer_types": ["sliding_attention", "full_attention"], "final_logit_softcapping": 5.0, "rope_theta": None}
CONFIGS = {"gemma4": GEMMA4, "llama": LLAMA, "gemma2": GEMMA2, "granite": GRANITE, "qwen3_moe": QWEN3_MOE, "gpt_oss": GPT_OSS}


def mixed(path: str, module: Any) -> Any:
    """As mlx-lm's recipes: more bits where it matters, another group size at the end."""
    if not hasattr(module, "to_quantized") or path.endswith("mlp.gate"):
        return False
    return {"bits": 6 if "v_proj" in path or "down_proj" in path else 3, "group_size": 32}


CASES: list[tuple[str, Any]] = [("llama", bits) for bits in (3, 4, 6, 8)]
CASES += [("gemma2", "mixed"), ("granite", 4), ("qwen3_moe", "mixed"), ("gpt_oss", "mxfp4"), ("gemma4", 8)]
OPTIONS: dict[Any, dict[str, Any]] = {"mixed": {"quant_predicate": mixed}, "mxfp4": {"mode": "mxfp4"}}


@pytest.mark.parametrize(("family", "bits"), CASES)
def test_quantised_base(family: str, bits: Any, tmp_path: Path) -> None:
    plain = write_base(tmp_path / "plain", CONFIGS[family])
    folder = write_quantised(tmp_path / "q", plain, 4 if bits in OPTIONS else bits, **OPTIONS.get(bits, {}))
    base = load_base(str(folder))
    assert base.is_quantized
    text = np.random.default_rng(0).integers(0, VOCAB, 24).tolist()
    unpacked = MLXModel(load_base(str(folder), dequantize=True), None).logits(text)
    np.testing.assert_allclose(MLXModel(base, None).logits(text), unpacked, rtol=0, atol=1e-3)
    checkpoint = write_checkpoint(tmp_path / "heads", folder, num_heads=2, noise=0.02)
    base, heads, _ = load_checkpoint(checkpoint, dequantize=True)
    assert written(StepBackend(MLXModel(base, heads)), text[:6], 24) == oracle(base, text[:6], 24)
    integers = ExportOptions(precision="int8", activations="fp32", group_size=32)
    for precision in ("fp32", "int8") if bits in (8, *OPTIONS) else ("fp32",):
        export_checkpoint(checkpoint, tmp_path / precision, integers if precision == "int8" else ExportOptions())
        onnx = open_folder(tmp_path / precision, provider="cpu", plain=True, num_threads=1)
        assert isinstance(onnx, PlainBackend)
        np.testing.assert_allclose(onnx.logits(text), unpacked, rtol=0, atol=1e-3)


def test_what_is_slow_on_a_cpu_is_said(
    text_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    folder = write_quantised(tmp_path / "q", write_base(tmp_path / "plain"), 8)
    arguments = ["train", "--model", str(folder), "--data", str(text_data), "--iters", "0", "--num-heads", "1"]
    for cpu, extra, said in ((True, [], 1), (True, ["--dequantize"], 0), (False, [], 0)):
        monkeypatch.setattr("mtpd_mlx.model.base.on_cpu", lambda cpu=cpu: cpu)
        assert main([*arguments, *extra, "--max-seq-length", "16", "--out", str(tmp_path / "o")]) == 3
        assert capsys.readouterr().err.count("--dequantize is several times as fast") == said
