"""Tiny random models and tokenizers for tests."""

import json
from pathlib import Path
from typing import Any

import numpy as np

VOCAB = 97

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rms_norm_eps": 1e-5,
    "vocab_size": VOCAB,
    "tie_word_embeddings": True,
    "max_position_embeddings": 256,
    "rope_theta": 10000.0,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama-tied": LLAMA,
    "llama-untied": LLAMA | {"tie_word_embeddings": False},
    "llama-bias": LLAMA | {"attention_bias": True, "mlp_bias": True},
    "llama-rope-scaled": LLAMA
    | {
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        }
    },
    "mistral": LLAMA | {"model_type": "mistral", "tie_word_embeddings": False},
    "qwen2": {k: v for k, v in LLAMA.items() if k != "head_dim"} | {"model_type": "qwen2"},
    "qwen3": LLAMA | {"model_type": "qwen3", "head_dim": 32, "tie_word_embeddings": False},
}


def write_tokenizer(folder: Path, vocab_size: int = VOCAB) -> None:
    """A character-level tokenizer with an end token (id 0), in Hugging Face files."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    folder.mkdir(parents=True, exist_ok=True)
    letters = [chr(32 + i) for i in range(vocab_size - 2)]
    vocab = {"<end>": 0, "\n": 1} | {c: i for i, c in enumerate(letters, start=2)}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token=" "))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("[\\s\\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(["<end>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<end>"}))


def write_base(folder: Path, config: dict[str, Any] = LLAMA, seed: int = 0, scale: float = 3.0) -> Path:
    """A random base in Hugging Face layout; `scale` widens its logits so that argmax is far from ties."""
    from mlx.utils import tree_flatten, tree_unflatten

    from mtpd_mlx.model.new_base import new_base
    from mtpd_mlx.model.runtime import mx

    base = new_base(config, seed)
    weights = [(n, w * scale if w.ndim == 2 else w) for n, w in tree_flatten(base.model.parameters())]
    if config.get("attention_bias") or config["model_type"] == "qwen2":
        rng = np.random.default_rng(seed)
        weights = [
            (n, mx.array(rng.normal(0, 0.1, w.shape).astype(np.float32)) if n.endswith("bias") else w) for n, w in weights
        ]
    base.model.update(tree_unflatten(weights))
    folder.mkdir(parents=True, exist_ok=True)
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(base.model.parameters())))
    (folder / "config.json").write_text(json.dumps(config | {"eos_token_id": 0}))
    write_tokenizer(folder)
    return folder


def write_quantised(
    folder: Path, plain_folder: Path, bits: int, group_size: int = 32, dtype: str = "float32", **options: Any
) -> Path:
    """The base of `plain_folder`, quantised by mlx-lm. `dtype`: of scales and biases; `options`: as for quantize_model."""
    from mlx_lm.utils import quantize_model, save_config, save_model

    from mtpd_mlx.model.base import load_base
    from mtpd_mlx.model.runtime import mx

    plain = load_base(str(plain_folder), dtype=getattr(mx, dtype))
    model, config = quantize_model(plain.model, plain.config, group_size, bits, **options)
    save_model(folder, model)
    save_config(config, folder / "config.json")
    write_tokenizer(folder)
    return folder


def write_checkpoint(
    folder: Path,
    base_folder: Path,
    num_heads: int = 3,
    hidden_source: str = "postnorm",
    noise: float = 0.0,
    draft_tokens: list[int] | None = None,
) -> Path:
    """Untrained heads with some noise; `draft_tokens`: their draft vocabulary."""
    from mlx.utils import tree_map

    from mtpd_mlx.checkpoints.fingerprint import fingerprint_base
    from mtpd_mlx.checkpoints.format import BaseRef, CheckpointConfig
    from mtpd_mlx.model.base import load_base
    from mtpd_mlx.model.heads import init_heads
    from mtpd_mlx.model.load_save import save_heads
    from mtpd_mlx.model.runtime import mx

    base = load_base(str(base_folder))
    heads = init_heads(base, num_heads, hidden_source, seed=1)
    rng = np.random.default_rng(2)
    heads.update(tree_map(lambda w: w + mx.array(rng.normal(0, noise, w.shape).astype(np.float32)), heads.parameters()))
    reference = BaseRef(
        str(base_folder), fingerprint_base(base_folder), base.config["model_type"], base.hidden_size, base.vocab_size
    )
    heads.draft_among(None if draft_tokens is None else mx.array(draft_tokens, mx.int32))
    save_heads(folder, heads, CheckpointConfig(num_heads, hidden_source, reference))
    return folder


def cycle_batch(rows: int, length: int, seed: int = 0) -> Any:
    """Text in which token i + 1 is token i + 3 (mod VOCAB): learnable by a tiny model in a few steps."""
    from mtpd_mlx.data import Batch

    start = np.random.default_rng(seed).integers(0, VOCAB, (rows, 1))
    tokens = ((start + 3 * np.arange(length)) % VOCAB).astype(np.int32)
    return Batch(tokens, np.ones_like(tokens), np.ones_like(tokens, dtype=bool))
