"""A reference is worth something only where its features show: each one, changed a little in config.json, moves the logits well
beyond the tolerance of the parity tests."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from family_models import TOLERANCE, build

from mtpd_mlx.measure.step_model import MLXModel
from mtpd_mlx.model.base import load_base

ALL, LAST = ["full_attention"] * 4, ["full_attention", "sliding_attention"] * 2
CHANGES: list[tuple[str, tuple[str, ...], Any]] = [
    ("llama3", ("rope_parameters", "factor"), 9.0),
    ("llama3", ("rope_parameters", "rope_theta"), 4e5),
    ("mistral-window", ("sliding_window",), 8),
    ("ministral", ("layer_types",), ALL),
    ("ministral3", ("rope_parameters", "llama_4_scaling_beta"), 0.11),
    ("ministral3", ("rope_parameters", "factor"), 5.0),
    ("qwen2-window", ("layer_types",), ALL),
    ("qwen2-window", ("sliding_window",), 8),
    ("qwen3", ("rope_parameters", "factor"), 5.0),
    ("smollm3", ("no_rope_layers",), [1, 1, 1, 1]),
    ("olmo3", ("layer_types",), LAST),
    ("olmo3", ("rope_parameters", "full_attention", "factor"), 5.0),
    ("granite", ("embedding_multiplier",), 3.1),
    ("granite", ("attention_multiplier",), 0.12),
    ("granite", ("residual_multiplier",), 0.61),
    ("granite", ("logits_scaling",), 0.71),
    ("phi3", ("sliding_window",), 8),
    ("phi3-longrope", ("rope_parameters", "short_factor"), [1.0] * 8),
    ("phi3-longrope", ("max_position_embeddings",), 512),
    ("phi4-mini", ("rope_parameters", "partial_rotary_factor"), 0.25),
    ("gemma2", ("attn_logit_softcapping",), 2.2),
    ("gemma2", ("final_logit_softcapping",), 1.1),
    ("gemma2", ("query_pre_attn_scalar",), 30),
    ("gemma2", ("sliding_window",), 8),
    ("gemma3", ("rope_parameters", "sliding_attention", "rope_theta"), 9e3),
    ("gemma3", ("rope_parameters", "full_attention", "rope_theta"), 9e3),
    ("gemma3", ("sliding_window",), 8),
    ("qwen3-moe", ("norm_topk_prob",), False),
    ("qwen3-moe", ("num_experts_per_tok",), 3),
    ("qwen3-moe-raw", ("norm_topk_prob",), True),
    ("mixtral", ("num_experts_per_tok",), 1),
    ("gemma4", ("final_logit_softcapping",), 5.5),
    ("gemma4", ("sliding_window",), 8),
    ("gemma4", ("rope_parameters", "full_attention", "partial_rotary_factor"), 0.5),
    ("gemma4", ("rope_parameters", "full_attention", "rope_theta"), 9e3),
    ("gemma4", ("rope_parameters", "sliding_attention", "rope_theta"), 9e3),
    ("gemma4-moe", ("top_k_experts",), 3),
    ("glm4-moe", ("routed_scaling_factor",), 1.4),
    ("glm4-moe", ("num_experts_per_tok",), 3),
    ("glm4-moe-groups", ("topk_group",), 3),
    ("glm4-moe-groups", ("norm_topk_prob",), False),
    ("granite4-moe", ("num_experts_per_tok",), 3),
    ("nemotron3", ("routed_scaling_factor",), 2.6),
    ("nemotron3", ("norm_topk_prob",), False),
    ("nemotron3-latent", ("topk_group",), 3),
    ("gpt-oss", ("swiglu_limit",), 0.8),
    ("gpt-oss", ("swiglu_alpha",), 1.6),
    ("gpt-oss", ("sliding_window",), 8),
    ("gpt-oss", ("layer_types",), ALL),
    ("gpt-oss", ("num_experts_per_tok",), 3),
    ("gpt-oss", ("rope_parameters", "truncate"), True),
]


@pytest.mark.parametrize(("name", "keys", "value"), CHANGES, ids=lambda v: ".".join(v) if isinstance(v, tuple) else None)
def test_every_feature_shows(name: str, keys: tuple[str, ...], value: Any, tmp_path: Path) -> None:
    reference = build(name, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    place = config
    for key in keys[:-1]:
        place = place[key]
    assert keys[-1] in place and place[keys[-1]] != value
    place[keys[-1]] = value
    if keys == ("rope_parameters", "partial_rotary_factor"):
        place["short_factor"] = place["short_factor"][:4]
        place["long_factor"] = place["long_factor"][:4]
    (tmp_path / "config.json").write_text(json.dumps(config))
    logits = MLXModel(load_base(str(tmp_path)), None).logits(reference.tokens)
    assert np.abs(logits - reference.logits).max() > 5 * TOLERANCE
