"""Tiny random bases of hybrid families, one for each kind of recurrence."""

from pathlib import Path
from typing import Any

from tiny import VOCAB, write_base

ENDS = {"vocab_size": VOCAB, "hidden_size": 64, "max_position_embeddings": 512, "intermediate_size": 96}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
DELTA = {"linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 16, "linear_value_head_dim": 32}
HYBRIDS: dict[str, dict[str, Any]] = {
    "delta": ENDS
    | HEADS
    | DELTA
    | {
        "model_type": "qwen3_5_text",
        "num_hidden_layers": 4,
        "full_attention_interval": 2,
        "head_dim": 32,
        "linear_conv_kernel_dim": 4,
        "tie_word_embeddings": True,
        "rope_parameters": {"rope_theta": 10000.0, "partial_rotary_factor": 0.5},
    },
    "joined": ENDS
    | HEADS
    | DELTA
    | {
        "model_type": "qwen3_next",
        "num_hidden_layers": 2,
        "full_attention_interval": 2,
        "head_dim": 64,
        "linear_conv_kernel_dim": 4,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 32,
        "tie_word_embeddings": True,
    },
    "pairs": ENDS
    | HEADS
    | {
        "model_type": "nemotron_h",
        "layers_block_type": ["mamba", "mlp", "attention", "mlp", "mamba"],
        "num_hidden_layers": 5,
        "head_dim": 16,
        "mamba_num_heads": 4,
        "mamba_head_dim": 32,
        "ssm_state_size": 16,
        "n_groups": 2,
        "conv_kernel": 4,
        "tie_word_embeddings": False,
    },
    "mamba": ENDS
    | HEADS
    | {
        "model_type": "granitemoehybrid",
        "num_hidden_layers": 3,
        "layer_types": ["mamba", "attention", "mamba"],
        "shared_intermediate_size": 96,
        "mamba_n_heads": 4,
        "mamba_d_head": 32,
        "mamba_d_state": 16,
        "mamba_n_groups": 2,
        "num_local_experts": 0,
        "tie_word_embeddings": True,
    },
    "conv": ENDS
    | HEADS
    | {
        "model_type": "lfm2",
        "num_hidden_layers": 3,
        "layer_types": ["conv", "full_attention", "conv"],
        "block_auto_adjust_ff_dim": False,
        "norm_eps": 1e-5,
    },
}


def write_hybrid(folder: Path, kind: str, seed: int = 0) -> Path:
    """A base whose greedy text changes and whose recurrence shows in it."""
    return write_base(folder, HYBRIDS[kind], seed, scale=6.0)
