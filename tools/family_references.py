#!/usr/bin/env python3
"""What transformers computes for a tiny model of every family: the oracle of tests/families, which then needs neither torch
nor transformers.

    python -m tools.family_references [NAME ...]        # writes tests/families/references/NAME.{json,npz}

Needs torch and transformers. A reference is the config.json that transformers writes, the names and shapes of the tensors
that it writes, and the logits [T, V] of one text; weights are drawn by tests/families/family_weights.py. Run it from the
repository root.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from tools.paths import ROOT

FOLDER = ROOT / "tests" / "families" / "references"
VOCAB, LENGTH = 97, 28
TINY = {"vocab_size": VOCAB, "hidden_size": 64, "intermediate_size": 80, "num_hidden_layers": 4, "num_attention_heads": 4}
TINY |= {"num_key_value_heads": 2, "max_position_embeddings": 256, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 64}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "beta_fast": 32.0, "beta_slow": 1.0}
YARN |= {"original_max_position_embeddings": 64}
FACTORS = {"short_factor": [1.0 + 0.1 * i for i in range(8)], "long_factor": [2.0 + i for i in range(8)]}
LONGROPE = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 64} | FACTORS
GEMMA = {"hidden_size": 96, "head_dim": 32, "query_pre_attn_scalar": 24, "sliding_window": 7}
GPT_OSS = {"head_dim": 32, "intermediate_size": 32, "num_local_experts": 6, "num_experts_per_tok": 2, "sliding_window": 7}
GPT_OSS |= {"swiglu_limit": 0.7, "rope_parameters": YARN | {"rope_theta": 150000.0, "truncate": False}}
MXFP4 = {
    "quant_method": "mxfp4",
    "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router", "lm_head"],
}
GEMMA4 = {"hidden_size": 96, "head_dim": 16, "global_head_dim": 32, "num_global_key_value_heads": 1, "attention_k_eq_v": True}
GEMMA4 |= {"sliding_window": 7, "layer_types": ["sliding_attention"] * 3 + ["full_attention"], "final_logit_softcapping": 5.0}
VISION = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
VISION |= {"image_size": 8, "patch_size": 4}
PIXTRAL = VISION | {"model_type": "pixtral", "head_dim": 8}

DELTA = {"head_dim": 32, "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 16}
DELTA |= {"linear_value_head_dim": 32, "linear_conv_kernel_dim": 4, "rope_parameters": {"rope_theta": 1e7}}
QWEN_MOE = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 32}
QWEN_VISION = {"depth": 1, "hidden_size": 8, "intermediate_size": 8, "num_heads": 1, "patch_size": 4, "out_hidden_size": 64}
QWEN_VISION |= {"num_position_embeddings": 16}

GRANITE4 = {"num_local_experts": 0, "num_experts_per_tok": 0, "shared_intermediate_size": 96, "mamba_n_heads": 8}
GRANITE4 |= {"mamba_d_head": 16, "mamba_d_state": 16, "mamba_n_groups": 2, "tie_word_embeddings": True}
GRANITE4 |= {"embedding_multiplier": 3.0, "attention_multiplier": 0.11, "residual_multiplier": 0.6, "logits_scaling": 0.7}

NEMOTRON = {"head_dim": 16, "ssm_state_size": 16, "mamba_num_heads": 8, "mamba_head_dim": 16, "n_groups": 2}

# name: (what people call it, configuration class of transformers, options)
REFERENCES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama2": ("Llama 2", "LlamaConfig", {}),
    "llama3": ("Llama 3.1, 3.2, 3.3", "LlamaConfig", {"rope_parameters": LLAMA3, "tie_word_embeddings": True}),
    "llama-bias": ("Llama with biases", "LlamaConfig", {"attention_bias": True, "mlp_bias": True}),
    "mistral-window": ("Mistral 7B v0.1", "MistralConfig", {"sliding_window": 7}),
    "mistral": ("Mistral 7B v0.2, v0.3, Nemo", "MistralConfig", {"sliding_window": None, "head_dim": 32}),
    "ministral": (
        "Ministral 8B (2410)",
        "MinistralConfig",
        {"sliding_window": 7, "head_dim": 32, "layer_types": ["full_attention"] + ["sliding_attention"] * 3},
    ),
    "ministral3": (
        "Ministral 3 (text)",
        "Ministral3Config",
        {
            "head_dim": 32,
            "rope_parameters": YARN
            | {"mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1, "original_max_position_embeddings": 16},
        },
    ),
    "qwen2": ("Qwen2, Qwen2.5", "Qwen2Config", {"tie_word_embeddings": True}),
    "qwen2-window": (
        "Qwen2 with windows",
        "Qwen2Config",
        {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 2},
    ),
    "mimo": ("MiMo 7B (of Qwen2's architecture)", "Qwen2Config", {"rope_parameters": {"rope_theta": 6.4e5}, "written": "mimo"}),
    "qwen3": ("Qwen3", "Qwen3Config", {"head_dim": 32, "rope_parameters": YARN}),
    "smollm2": ("SmolLM2", "LlamaConfig", {"tie_word_embeddings": True, "rope_parameters": {"rope_theta": 1e5}}),
    "smollm3": ("SmolLM3", "SmolLM3Config", {}),
    "olmo2": ("OLMo 2", "Olmo2Config", {}),
    "olmo3": (
        "OLMo 3",
        "Olmo3Config",
        {"sliding_window": 7, "rope_parameters": {"full_attention": YARN, "sliding_attention": {"rope_theta": 1e4}}},
    ),
    "granite": (
        "Granite 3",
        "GraniteConfig",
        {"embedding_multiplier": 3.0, "attention_multiplier": 0.11, "residual_multiplier": 0.6, "logits_scaling": 0.7},
    ),
    "phi3": ("Phi-3 mini 4k, Phi-4", "Phi3Config", {"sliding_window": 7}),
    "phi3-longrope": (
        "Phi-3 mini 128k, Phi-3.5",
        "Phi3Config",
        {"rope_parameters": LONGROPE, "original_max_position_embeddings": 64},
    ),
    "phi4-mini": (
        "Phi-4 mini",
        "Phi3Config",
        {
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "rope_parameters": LONGROPE | {"partial_rotary_factor": 0.5},
            "original_max_position_embeddings": 64,
            "tie_word_embeddings": True,
        },
    ),
    "gemma2": ("Gemma 2", "Gemma2Config", GEMMA | {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 1.0}),
    "gemma3": ("Gemma 3 (text)", "Gemma3TextConfig", GEMMA | {"layer_types": ["sliding_attention"] * 3 + ["full_attention"]}),
    "gemma3-vision": (
        "Gemma 3 with vision (its text)",
        "Gemma3Config",
        {
            "text_config": TINY | GEMMA | {"layer_types": ["sliding_attention"] * 3 + ["full_attention"]},
            "vision_config": VISION | {"vision_use_head": False},
            "mm_tokens_per_image": 4,
        },
    ),
    "mistral3-vision": (
        "Mistral Small 3, Ministral 3 with vision (their text)",
        "Mistral3Config",
        {"text_config": TINY | {"model_type": "mistral", "head_dim": 32, "sliding_window": None}, "vision_config": PIXTRAL},
    ),
    "qwen3-moe": (
        "Qwen3 MoE",
        "Qwen3MoeConfig",
        {
            "head_dim": 32,
            "num_experts": 6,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 24,
            "norm_topk_prob": True,
            "mlp_only_layers": [1],
        },
    ),
    "qwen3-moe-raw": (
        "Qwen3 MoE, weights not normalised",
        "Qwen3MoeConfig",
        {"head_dim": 32, "num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "norm_topk_prob": False},
    ),
    "gemma4": ("Gemma 4 31B (text)", "Gemma4TextConfig", GEMMA4 | {"hidden_size_per_layer_input": 0}),
    "gemma4-unified": ("Gemma 4 12B (its text)", "Gemma4UnifiedConfig", {"text_config": TINY | GEMMA4}),
    "gemma4-moe": (
        "Gemma 4 26B-A4B (text)",
        "Gemma4TextConfig",
        GEMMA4
        | {"hidden_size_per_layer_input": 0, "enable_moe_block": True}
        | {"hidden_size": 64, "num_experts": 6, "top_k_experts": 2, "moe_intermediate_size": 32},
    ),
    "glm4-moe": (
        "GLM-4.5-Air",
        "Glm4MoeConfig",
        {"head_dim": 32, "attention_bias": True, "n_routed_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
        | {"routed_scaling_factor": 1.3, "shipped": "nextn"},
    ),
    "glm4-moe-groups": (
        "GLM-4.5, 4.6 and 4.7",
        "Glm4MoeConfig",
        {"n_routed_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 24, "n_group": 4, "topk_group": 2}
        | {
            "head_dim": 32,
            "use_qk_norm": True,
            "attention_bias": True,
            "routed_scaling_factor": 2.5,
            "first_k_dense_replace": 2,
        },
    ),
    "gpt-oss": (
        "gpt-oss",
        "GptOssConfig",
        GPT_OSS,
    ),
    "gpt-oss-mxfp4": ("gpt-oss in MXFP4, as OpenAI stores it", "GptOssConfig", GPT_OSS | {"packed": "mxfp4"}),
    "qwen3.5": ("Qwen3.5, 3.6, 3.8 (text)", "Qwen3_5TextConfig", DELTA | {"tie_word_embeddings": True, "shipped": "mtp"}),
    "qwen3.5-vision": (
        "Qwen3.5, 3.6, 3.8 with vision (their text)",
        "Qwen3_5Config",
        {
            "text_config": TINY | DELTA | {"model_type": "qwen3_5_text", "linear_num_value_heads": 2},
            "vision_config": QWEN_VISION,
        },
    ),
    "qwen3.5-moe": ("Qwen3.5 and 3.6 MoE (text)", "Qwen3_5MoeTextConfig", DELTA | QWEN_MOE | {"shipped": "mtp"}),
    "qwen3-next": (
        "Qwen3-Next",
        "Qwen3NextConfig",
        DELTA | QWEN_MOE | {"mlp_only_layers": [1], "norm_topk_prob": True, "shipped": "mtp"},
    ),
    "granite4": (
        "Granite 4.0 H (dense)",
        "GraniteMoeHybridConfig",
        GRANITE4 | {"layer_types": ["mamba", "mamba", "attention", "mamba"]},
    ),
    "granite4-dense": (
        "Granite 4.0 without recurrence",
        "GraniteMoeHybridConfig",
        GRANITE4 | {"layer_types": ["attention"] * 4, "position_embedding_type": "rope"},
    ),
    "nemotron-h": (
        "Nemotron-H (dense)",
        "NemotronHConfig",
        NEMOTRON | {"layers_block_type": ["linear_attention", "mlp", "full_attention", "mlp", "linear_attention"]},
    ),
    "lfm2": (
        "LFM2, LFM2.5",
        "Lfm2Config",
        {"layer_types": ["conv", "full_attention", "conv", "conv"], "block_multiple_of": 32, "norm_eps": 1e-5},
    ),
    "lfm2-moe": (
        "LFM2 and 2.5 MoE",
        "Lfm2MoeConfig",
        {"layer_types": ["conv", "full_attention", "conv", "full_attention"], "num_dense_layers": 1, "num_experts": 6}
        | {"num_experts_per_tok": 2, "moe_intermediate_size": 24, "routed_scaling_factor": 1.5},
    ),
    "mixtral": ("Mixtral", "MixtralConfig", {"num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 40}),
}


def text() -> list[int]:
    return np.random.default_rng(0).integers(1, VOCAB, LENGTH).tolist()


def auto_class(config: Any) -> Any:
    """Multimodal models are of another kind to transformers."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    return AutoModelForImageTextToText if hasattr(config, "vision_config") else AutoModelForCausalLM


def save_shapes(config: Any, folder: Path) -> dict[str, list[int]]:
    """The tensors that transformers writes for such a model; config.json stays in `folder`."""
    from mtpd_mlx.files.safetensors import read_header

    auto_class(config).from_config(config).save_pretrained(folder)
    return {name: entry["shape"] for name, entry in sorted(read_header(folder / "model.safetensors")[0].items())}


def norm_center(shapes: dict[str, list[int]], model_type: str) -> float:
    """What stands for 1 in the weights of norms."""
    return 0.0 if model_type.startswith(("gemma2", "gemma3", "qwen3_5", "qwen3_next")) else 1.0


def reference_logits(folder: Path, tokens: list[int]) -> np.ndarray:
    """float32 [T, V] by transformers, eager attention."""
    import torch
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder)
    options: dict[str, Any] = {"dtype": torch.float32, "attn_implementation": "eager"}
    if getattr(config, "quantization_config", None):
        from transformers import Mxfp4Config

        options["quantization_config"] = Mxfp4Config(dequantize=True)
    model = auto_class(config).from_pretrained(folder, **options).eval()
    with torch.no_grad():
        return model(torch.tensor([tokens])).logits[0].float().numpy()


def without_written(options: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in options.items() if k not in ("written", "packed", "shipped")}


def shipped_shapes(shapes: dict[str, list[int]], config: dict[str, Any], layout: str) -> dict[str, list[int]]:
    """The tensors of one MTP head of the last block's type, as the family's published checkpoints name them."""
    layers, d = config["num_hidden_layers"], config["hidden_size"]
    stem, norms = f"model.layers.{layers}.", ("enorm", "hnorm", "shared_head.norm")
    if layout == "mtp":
        stem, norms = "mtp.layers.0.", ("pre_fc_norm_embedding", "pre_fc_norm_hidden", "norm")
    beside = stem if layout == "nextn" else "mtp."
    last = f"model.layers.{layers - 1}."
    block = {stem + name.removeprefix(last): shape for name, shape in shapes.items() if name.startswith(last)}
    extras = {f"{beside}{name}.weight": [d] for name in norms}
    return block | extras | {f"{beside}{'fc' if layout == 'mtp' else 'eh_proj'}.weight": [d, 2 * d]}


def shipped_logits(folder: Path, tokens: list[int], shipped: dict[str, list[int]]) -> np.ndarray:
    """float32 [T - 1, V]: what the head says after each token and the next, by transformers' own MTP decoding."""
    import torch
    from transformers import AutoConfig
    from transformers.cache_utils import MtpCache
    from transformers.modeling_layers import MtpModel

    config = AutoConfig.from_pretrained(folder)
    config.num_mtp_layers = 1
    if getattr(config, "layer_types", None):
        config.mtp_layer_types = ["full_attention"]
    model_class = type(auto_class(config).from_config(config))
    model_class._keys_to_ignore_on_load_unexpected = [rf"^{sorted(shipped)[0].split('.layers.')[0]}.*"]
    if not sorted(shipped)[0].startswith("mtp."):
        model_class._keys_to_ignore_on_load_unexpected = [rf"model\.layers\.{config.num_hidden_layers}\."]
    options = {"dtype": torch.float32, "attn_implementation": "eager"}
    model = model_class.from_pretrained(folder, config=config, **options).eval()
    mtp = MtpModel.from_pretrained(model)
    with torch.no_grad():
        inside = model.model(torch.tensor([tokens]))
        states = mtp.forward_layer(
            0,
            inside.last_hidden_state[:, :-1],
            torch.arange(1, len(tokens))[None],
            MtpCache(config=config.get_mtp_config()),
            input_ids=torch.tensor([tokens[1:]]),
        )
        return model.lm_head(states)[0].float().numpy()


def in_blocks(shapes: dict[str, list[int]]) -> dict[str, list[int]]:
    """The tensors of gpt-oss whose experts are in MXFP4."""
    packed = {}
    for name, shape in shapes.items():
        if name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            count, inputs, outputs = shape
            packed |= {f"{name}_blocks": [count, outputs, inputs // 32, 16], f"{name}_scales": [count, outputs, inputs // 32]}
        else:
            packed[name] = shape
    return packed


def make(name: str, out: Path) -> float:
    """Writes one reference; returns the largest logit."""
    import transformers

    from tests.families.family_weights import write_weights

    title, kind, options = REFERENCES[name]
    given = ({} if "text_config" in options else TINY) | without_written(options)
    if "layers_block_type" in given:
        del given["num_hidden_layers"]
    config = getattr(transformers, kind)(**given)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        shapes = save_shapes(config, folder)
        written = json.loads((folder / "config.json").read_text())
        center = norm_center(shapes, written["model_type"])
        if "packed" in options:
            shapes, written = in_blocks(shapes), written | {"quantization_config": MXFP4}
            (folder / "config.json").write_text(json.dumps(written))
        write_weights(folder / "model.safetensors", shapes, center)
        logits = {"logits": reference_logits(folder, text())}
        if "shipped" in options:
            shipped = shipped_shapes(shapes, written, options["shipped"])
            write_weights(folder / "model.safetensors", shapes | shipped, center)
            logits["shipped"] = shipped_logits(folder, text(), shipped)
    if "written" in options:  # a model_type that transformers has no class for
        written |= {"model_type": options["written"], "architectures": ["MiMoForCausalLM"]}
        written = {k: v for k, v in written.items() if k not in ("layer_types", "max_window_layers", "use_sliding_window")}
    record = {"title": title, "norm_center": center, "tokens": text(), "config": written, "shapes": shapes}
    if "shipped" in options:
        record["shipped"] = shipped
    (out / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    np.savez_compressed(out / f"{name}.npz", **logits)
    return float(np.abs(logits["logits"]).max())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(REFERENCES), help=f"of {', '.join(REFERENCES)} (default: all)")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder to write (default: %(default)s)")
    args = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    args.out.mkdir(parents=True, exist_ok=True)
    for name in args.names:
        print(f"{name}: largest logit {make(name, args.out):.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
