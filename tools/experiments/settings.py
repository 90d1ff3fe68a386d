"""`Setting`: the base's dimensions, lengths of training and sizes of evaluation. The only place of defaults.
Called by run.py, equal_time.py and merge.py."""

from dataclasses import dataclass, fields, replace
from typing import Any

COMMON: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "max_position_embeddings": 2048,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "bos_token_id": 0,
    "eos_token_id": 0,
}


def llama(hidden: int, layers: int, heads: int, kv_heads: int, intermediate: int) -> dict[str, Any]:
    """config.json of a Llama, but for the vocabulary."""
    dims = {"hidden_size": hidden, "num_hidden_layers": layers, "intermediate_size": intermediate}
    return COMMON | dims | {"num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": hidden // heads}


BASES = {
    "tiny": llama(64, 2, 4, 2, 128),
    "llama-1m": llama(128, 4, 4, 4, 384),
    "llama-30m": llama(512, 8, 8, 8, 1408),
    "llama-107m": llama(768, 16, 12, 4, 2048),
}


@dataclass(frozen=True)
class Setting:
    """Steps are optimiser steps of batch_size x length tokens. joint_steps: base and heads from scratch; base_steps: a base
    alone; heads_steps: heads on that base; loop_steps: the new heads of a looped extension."""

    base: str
    batch_size: int = 32
    length: int = 512
    joint_steps: int = 1500
    joint_rate: float = 2e-3
    base_steps: int = 4000
    heads_steps: int = 1500
    heads_rate: float = 1e-3
    loop_steps: int = 400
    loop_rate: float = 1e-3
    warmup: int = 100
    seeds: int = 2  # of the arms that have several
    own_rows: int = 4096  # rows of the base's own text
    own_batch: int = 512
    own_prompt: int = 64  # tokens of the corpus that a row begins with
    own_temp: float = 0.6
    gen_tokens: int = 128  # of the base's text that acceptance is measured on, per prompt
    gen_batch: int = 512
    prompts: int = 64  # per set, at most
    temp: float = 0.7  # of sampled decoding
    valid_rows: int = 128  # held-out rows validated on at both ends of a training
    save_every: int = 1000
    report_every: int = 100


SETTINGS = {
    "tiny": Setting(
        "tiny", 4, 32, joint_steps=6, base_steps=6, heads_steps=4, loop_steps=4, warmup=1, seeds=1, own_rows=8, own_batch=4,
        own_prompt=8, gen_tokens=24, gen_batch=16, prompts=2, valid_rows=8, save_every=2, report_every=2,
    ),
    "llama-1m": Setting(  # for 2 CPU cores and a vocabulary of 1024: 6 to 10 minutes an arm
        "llama-1m", 8, 96, joint_steps=600, base_steps=900, heads_steps=300, loop_steps=100, warmup=50, own_rows=512,
        own_batch=256, own_prompt=16, gen_tokens=64, gen_batch=256, prompts=24, valid_rows=64, save_every=300,
    ),
    "llama-30m": Setting("llama-30m"),
    "llama-107m": Setting("llama-107m", joint_rate=1.5e-3, joint_steps=3000, base_steps=6000, heads_steps=2000, own_rows=2048),
}  # fmt: skip


def setting(name: str, changes: list[str]) -> Setting:
    """A named setting with `changes` ("joint_steps=1000"). ValueError in one line on an unknown name."""
    if name not in SETTINGS:
        raise ValueError(f"setting {name!r}: expected one of {', '.join(SETTINGS)}")
    chosen = SETTINGS[name]
    types = {f.name: f.type for f in fields(Setting)}
    values: dict[str, Any] = {}
    for change in changes:
        key, _, value = change.partition("=")
        if key not in types or not value:
            raise ValueError(f"--set {change}: expected NAME=VALUE with NAME one of {', '.join(types)}")
        values[key] = type(getattr(chosen, key))(value)
    return replace(chosen, **values)
