"""Tiny models as GGUF files: what llama.cpp's converter does to Hugging Face weights, by the gguf package's writer."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf.quants import dequantize, quantize

VOCAB = 97
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
COMMON = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "vocab_size": VOCAB,
    "max_position_embeddings": 256,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", "head_dim": 16, "tie_word_embeddings": True},
    "llama-untied": {"model_type": "llama", "head_dim": 16, "tie_word_embeddings": False},
    "llama-bias": {
        "model_type": "llama",
        "head_dim": 16,
        "attention_bias": True,
        "mlp_bias": True,
        "tie_word_embeddings": True,
    },
    "llama3": {
        "model_type": "llama",
        "head_dim": 32,
        "tie_word_embeddings": True,
        "rope_scaling": LLAMA3 | {"rope_type": "llama3"},
    },
    "llama-linear": {
        "model_type": "llama",
        "tie_word_embeddings": True,
        "rope_scaling": {"rope_type": "linear", "factor": 4.0},
    },
    "qwen2": {"model_type": "qwen2", "tie_word_embeddings": True},
    "qwen2-yarn": {
        "model_type": "qwen2",
        "tie_word_embeddings": False,
        "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
    },
    "qwen3": {"model_type": "qwen3", "head_dim": 32, "tie_word_embeddings": False},
    "gemma3": {
        "model_type": "gemma3_text",
        "head_dim": 32,
        "num_hidden_layers": 7,
        "tie_word_embeddings": True,
        "sliding_window": 4,
        "sliding_window_pattern": 6,
        "query_pre_attn_scalar": 32,
        "rope_local_base_freq": 10000.0,
        "rope_theta": 1000000.0,
        "rms_norm_eps": 1e-6,
    },
}
ARCHITECTURES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma3_text": "gemma3"}
PARTS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
}
PARTS_OF_GEMMA = PARTS | {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
ENDS = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}


@dataclass(frozen=True)
class Source:
    """file: the GGUF; folder: the Hugging Face model of the values that the file's blocks stand for, in float32."""

    file: Path
    folder: Path
    config: dict[str, Any]
    kinds: dict[str, str]


def config_of(family: str) -> dict[str, Any]:
    return COMMON | FAMILIES[family]


def gguf_name(name: str, config: Mapping[str, Any]) -> str:
    if name in ENDS:
        return ENDS[name]
    _, _, layer, *part, kind = name.split(".")
    parts = PARTS_OF_GEMMA if config["model_type"] == "gemma3_text" else PARTS
    return f"blk.{layer}.{parts['.'.join(part)]}.{kind}"


def llama_order(rows: np.ndarray, heads: int) -> np.ndarray:
    """convert_hf_to_gguf.py's order of q and k: the two halves of a head become pairs."""
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def random_weights(config: dict[str, Any], folder: Path, seed: int) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file
    from tiny import write_base

    weights = load_file(write_base(folder, config, seed=seed, scale=2.0) / "model.safetensors")
    rng = np.random.default_rng(seed)
    drawn = {n: w + rng.normal(0, 0.1, w.shape) for n, w in weights.items() if w.ndim == 1}
    norms = {n: w.astype(np.float16).astype(np.float32) for n, w in drawn.items()}  # as models are published
    return weights | norms


def write_source(family: str, folder: Path, kind_of: Callable[[str], str], seed: int = 0) -> Source:
    """`kind_of`: GGML type of each matrix, by its Hugging Face name."""
    from safetensors.numpy import save_file

    config = config_of(family)
    weights = random_weights(config, folder / "hf", seed)
    kinds = {name: kind_of(name) if w.ndim == 2 else "F32" for name, w in weights.items()}
    writer = gguf.GGUFWriter(folder / "model.gguf", ARCHITECTURES[config["model_type"]])
    write_metadata(writer, config)
    write_characters(writer)
    values = {}
    for name, w in weights.items():
        kind = gguf.GGMLQuantizationType[kinds[name]]
        stored = w + np.float32(1) if config["model_type"] == "gemma3_text" and w.ndim == 1 else w
        blocks = quantize(stored, kind)
        values[name] = dequantize(blocks, kind) if w.ndim == 2 else w
        for part, heads in (("q_proj", config["num_attention_heads"]), ("k_proj", config["num_key_value_heads"])):
            if config["model_type"] == "llama" and f".{part}." in name:
                blocks = llama_order(blocks, heads)
        writer.add_tensor(gguf_name(name, config), blocks, raw_dtype=kind)
    finish(writer)
    save_file({n: np.ascontiguousarray(v, np.float32) for n, v in values.items()}, folder / "hf" / "model.safetensors")
    return Source(folder / "model.gguf", folder / "hf", config, kinds)


def finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_metadata(writer: gguf.GGUFWriter, config: Mapping[str, Any]) -> None:
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    if "head_dim" in config:
        writer.add_key_length(config["head_dim"])
        writer.add_value_length(config["head_dim"])
    if "sliding_window" in config:
        writer.add_sliding_window(config["sliding_window"])
    scaling = config.get("rope_scaling") or {}
    if scaling.get("rope_type") == "llama3":
        writer.add_tensor("rope_freqs.weight", llama3_factors(config, scaling))
    elif scaling:
        writer.add_rope_scaling_type(gguf.RopeScalingType(scaling["rope_type"]))
        writer.add_rope_scaling_factor(scaling["factor"])
        if "original_max_position_embeddings" in scaling:
            writer.add_rope_scaling_orig_ctx_len(scaling["original_max_position_embeddings"])


def llama3_factors(config: Mapping[str, Any], scaling: Mapping[str, Any]) -> np.ndarray:
    """One by one, as llama.cpp's converter computes them."""
    factors, original = [], scaling["original_max_position_embeddings"]
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    for i in range(0, config["head_dim"], 2):
        period = 2 * np.pi * config["rope_theta"] ** (i / config["head_dim"])
        if period < original / high:
            factors.append(1.0)
        elif period > original / low:
            factors.append(scaling["factor"])
        else:
            smooth = (original / period - low) / (high - low)
            factors.append(1 / ((1 - smooth) / scaling["factor"] + smooth))
    return np.array(factors, np.float32)


def write_characters(writer: gguf.GGUFWriter) -> None:
    """A vocabulary of single characters, which are all that the tests of weights need."""
    tokens = ["<|end|>", "Ġ", "Ċ", "!!", *(chr(33 + i) for i in range(VOCAB - 4))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([3] + [1] * (VOCAB - 1))
    writer.add_token_merges(["! !"])
    writer.add_eos_token_id(0)


def edit(source: Path, target: Path, change: Callable[[dict[str, Any], dict[str, Any]], None]) -> Path:
    """Another file of the same tensors and metadata after `change(metadata, tensors)`: values by key, and
    (array, GGML type) by name."""
    reader = gguf.GGUFReader(source)
    metadata = {k: (f.contents(), f.types) for k, f in reader.fields.items() if not k.startswith("GGUF.")}
    values = {k: v for k, (v, _) in metadata.items()}
    tensors = {t.name: (np.array(t.data), t.tensor_type) for t in reader.tensors}
    change(values, tensors)
    writer = gguf.GGUFWriter(target, values.pop("general.architecture"))
    for key, value in values.items():
        kept = key in metadata and (value is metadata[key][0] or isinstance(value, list))
        types = metadata[key][1] if kept else [type_of(value)]
        writer.add_key_value(key, value, types[0], types[-1] if len(types) > 1 else None)
    for name, (array, kind) in tensors.items():
        writer.add_tensor(name, array, raw_dtype=kind)
    finish(writer)
    return target


def type_of(value: Any) -> gguf.GGUFValueType:
    kinds = {str: "STRING", bool: "BOOL", int: "UINT32", float: "FLOAT32"}
    return gguf.GGUFValueType[kinds[type(value)]]


def read_json(file: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return values
