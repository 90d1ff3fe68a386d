"""`text_config`, `text_name`: the language model inside a multimodal checkpoint, as if it were alone.
Called by families/config.py, checkpoints and the exporter."""

from typing import Any

WRAPPERS = ("gemma3", "mistral3", "qwen3_5", "qwen3_5_moe", "gemma4", "gemma4_unified")
INSIDE: tuple[str, ...] = ("language_model.model.", "model.language_model.")
OUTSIDE: tuple[str, ...] = ("vision_tower.", "multi_modal_projector.", "vision_model.", "vision_encoder.")
OUTSIDE += ("model.vision_tower.", "model.multi_modal_projector.", "model.vision_encoder.")
OUTSIDE += ("model.visual.", "visual.", "patch_merger.", "vision_language_adapter.")
OUTSIDE += ("audio_tower.", "embed_audio.", "embed_vision.", "vision_embedder.")
OUTSIDE += ("model.audio_tower.", "model.embed_audio.", "model.embed_vision.", "model.vision_embedder.")
# What transformers assumes of the text inside a Gemma 3, where config.json leaves it out as the published ones do.
DEFAULTS = {"gemma3_text": {"vocab_size": 262208, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256}}
DEFAULTS["gemma3_text"] |= {"max_position_embeddings": 131072, "num_hidden_layers": 26}


def text_config(config: dict[str, Any]) -> dict[str, Any]:
    """The language model's own config; of a plain model the config itself. What lies at the top goes in where it is missing
    inside: token ids, quantization (with the tensors' plain names)."""
    inner = config.get("text_config")
    if config.get("model_type") == "nemotron_h":  # transformers counts the list and leaves the number out
        blocks = config.get("layers_block_type") or config.get("hybrid_override_pattern") or ()
        return config | ({"num_hidden_layers": len(blocks)} if isinstance(blocks, list | str) and blocks else {})
    if config.get("model_type") not in WRAPPERS or not isinstance(inner, dict):
        return config
    kept = ("eos_token_id", "bos_token_id", "quantization", "quantization_config", "dtype", "torch_dtype")
    defaults: dict[str, Any] = DEFAULTS.get(str(inner.get("model_type")), {})
    merged = defaults | {name: config[name] for name in kept if config.get(name) is not None} | inner
    told = {place["tie_word_embeddings"] for place in (config, inner) if place.get("tie_word_embeddings") is not None}
    if told == {True}:
        merged["tie_word_embeddings"] = True
    else:
        merged.pop("tie_word_embeddings", None)  # inside and outside may differ: the weights say
    if isinstance(merged.get("quantization"), dict):
        merged["quantization"] = {text_name(key) or key: value for key, value in merged["quantization"].items()}
    return merged


def text_name(name: str) -> str | None:
    """The tensor's name in the language model alone; None where it belongs to something else."""
    if name.startswith(OUTSIDE):
        return None
    for prefix in INSIDE:
        if name.startswith(prefix):
            return "model." + name.removeprefix(prefix)
    if name.startswith(("language_model.lm_head.", "language_model.mtp.")):
        return name.removeprefix("language_model.")
    return (
        name.removeprefix("model.") if name.startswith("model.mtp.") else name
    )  # Qwen's heads, wherever a conversion puts them
