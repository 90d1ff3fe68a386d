"""The tiny models of tests/families, by the names of their references. Read by tools/family_references.py."""

from typing import Any

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

DELTA = {"head_dim": 64, "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 16}
DELTA |= {"linear_value_head_dim": 32, "linear_conv_kernel_dim": 4, "rope_parameters": {"rope_theta": 1e7}}
QWEN_MOE = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 32}
QWEN_VISION = {"depth": 1, "hidden_size": 8, "intermediate_size": 8, "num_heads": 1, "patch_size": 4, "out_hidden_size": 64}
QWEN_VISION |= {"num_position_embeddings": 16}

GRANITE4 = {"num_local_experts": 0, "num_experts_per_tok": 0, "shared_intermediate_size": 96, "mamba_n_heads": 8}
GRANITE4 |= {"mamba_d_head": 16, "mamba_d_state": 16, "mamba_n_groups": 2, "tie_word_embeddings": True}
GRANITE4 |= {"embedding_multiplier": 3.0, "attention_multiplier": 0.11, "residual_multiplier": 0.6, "logits_scaling": 0.7}

GRANITE4_MOE = {"num_local_experts": 6, "num_experts_per_tok": 2, "intermediate_size": 24}

NEMOTRON = {"head_dim": 16, "ssm_state_size": 16, "mamba_num_heads": 8, "mamba_head_dim": 16, "n_groups": 2}
NEMOTRON_MOE = {"n_routed_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 24, "routed_scaling_factor": 2.5}
NEMOTRON_MOE |= {"moe_shared_expert_intermediate_size": 40, "intermediate_size": 24}
NEMOTRON_MOE |= {"layers_block_type": ["linear_attention", "moe", "full_attention", "linear_attention", "moe"]}

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
        {
            "n_routed_experts": 8,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 24,
            "n_group": 4,
            "topk_group": 2,
            "shipped": "nemotron",
        }
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
    "qwen3.5": (
        "Qwen3.5, 3.6, 3.8 (text)",
        "Qwen3_5TextConfig",
        DELTA | {"tie_word_embeddings": True, "shipped": "mtp"},
    ),
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
    "granite4-moe": (
        "Granite 4.0 H tiny and small",
        "GraniteMoeHybridConfig",
        GRANITE4 | GRANITE4_MOE | {"layer_types": ["mamba", "attention", "mamba"], "num_hidden_layers": 3},
    ),
    "nemotron3": ("Nemotron 3 Nano", "NemotronHConfig", NEMOTRON | NEMOTRON_MOE | {"shipped": "nemotron"}),
    "nemotron3-latent": (
        "Nemotron 3 Super and Ultra",
        "NemotronHConfig",
        NEMOTRON | NEMOTRON_MOE | {"moe_latent_size": 16, "n_group": 4, "topk_group": 2, "shipped": "nemotron"},
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
