"""`model_config(source)`: config.json of the model in a GGUF file, without how its weights are quantised.
Called by gguf/write.py."""

from typing import Any

from mtpd_mlx.checkpoints.gguf.reader import Gguf
from mtpd_mlx.checkpoints.gguf.rope import number, rope_scaling
from mtpd_mlx.families.config import MAX_LAYERS
from mtpd_mlx.families.layers import FULL, SLIDING

ARCHITECTURES = {
    "llama": ("llama", "LlamaForCausalLM"),
    "qwen2": ("qwen2", "Qwen2ForCausalLM"),
    "qwen3": ("qwen3", "Qwen3ForCausalLM"),
    "gemma3": ("gemma3_text", "Gemma3ForCausalLM"),
}
TOKENS = "tokenizer.ggml.tokens"
CHANGED = (  # keys by which other models compute otherwise; llama.cpp reads some of them in our architectures too
    "expert_count",
    "attention.scale",
    "attention.temperature_scale",
    "attention.clamp_kqv",
    "attention.max_alibi_bias",
    "embedding_scale",
    "residual_scale",
    "logit_scale",
    "rope.scaling.alpha",
)
GEMMA3_PATTERN, GEMMA3_THETA, GEMMA3_LOCAL_THETA = 6, 1e6, 1e4  # constants of llama.cpp, which files do not say
GEMMA3_27B_LAYERS = 62  # the one Gemma 3 whose queries are not scaled by head_dim ** -0.5


def architecture_of(source: Gguf) -> str:
    """ValueError names those that are known."""
    name = source.need("general.architecture", str)
    if name not in ARCHITECTURES:
        raise ValueError(f"{source.file}: general.architecture: got {name!r}, expected one of {', '.join(ARCHITECTURES)}")
    return name


def model_config(source: Gguf) -> dict[str, Any]:
    """ValueError in one line names the key that is missing or cannot be expressed."""
    architecture = architecture_of(source)
    model_type, class_name = ARCHITECTURES[architecture]

    def key(name: str) -> str:
        return f"{architecture}.{name}"

    for name in CHANGED:
        if value := source.get(key(name), float):
            raise ValueError(f"{source.file}: {key(name)}: got {value:g}, which is not supported in {architecture}")
    if not source.get(key("attention.causal"), bool, True):
        raise ValueError(f"{source.file}: {key('attention.causal')}: got false, expected a model that writes text")
    width, heads = source.need(key("embedding_length"), int), source.need(key("attention.head_count"), int)
    head_dim = source.get(key("attention.key_length"), int) or width // max(heads, 1)
    for name in ("attention.value_length", "rope.dimension_count"):
        if (got := source.get(key(name), int, head_dim)) != head_dim:
            raise ValueError(f"{source.file}: {key(name)}: got {got}, expected {head_dim}, the size of a head")
    default_theta = GEMMA3_THETA if architecture == "gemma3" else 1e4
    theta = number(source.get(key("rope.freq_base"), float) or default_theta)
    names, layers = set(source.tensors), source.need(key("block_count"), int)
    if not 1 <= layers <= MAX_LAYERS:
        raise ValueError(f"{source.file}: {key('block_count')}: got {layers}, expected 1..{MAX_LAYERS}")
    config: dict[str, Any] = {
        "architectures": [class_name],
        "model_type": model_type,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "intermediate_size": source.need(key("feed_forward_length"), int),
        "num_attention_heads": heads,
        "num_key_value_heads": source.get(key("attention.head_count_kv"), int) or heads,
        "head_dim": head_dim,
        "rms_norm_eps": number(source.need(key("attention.layer_norm_rms_epsilon"), float)),
        "rope_theta": theta,
        "rope_scaling": rope_scaling(source, architecture, theta, head_dim),
        "vocab_size": _vocab_size(source),
        "max_position_embeddings": source.need(key("context_length"), int),
        "tie_word_embeddings": "output.weight" not in names,
        "attention_bias": architecture == "llama" and "blk.0.attn_q.bias" in names,
        "mlp_bias": architecture == "llama" and "blk.0.ffn_up.bias" in names,
        "hidden_act": "silu",
    }
    if architecture == "qwen2":
        del config["head_dim"]  # transformers has none: hidden_size / num_attention_heads
        if head_dim * heads != width:
            raise ValueError(f"{source.file}: {key('attention.key_length')}: got {head_dim}, expected {width // max(heads, 1)}")
    return _gemma3(source, config) if architecture == "gemma3" else config


def _vocab_size(source: Gguf) -> int:
    """Rows of the embedding; a file may have fewer tokens (padding), never more."""
    tokens = source.need(TOKENS, list)
    embedding = source.tensors.get("token_embd.weight")
    if embedding is None:
        raise ValueError(f"{source.file}: missing tensor 'token_embd.weight'")
    if len(tokens) > embedding.shape[0]:
        raise ValueError(
            f"{source.file}: {TOKENS}: got {len(tokens)} tokens, expected at most {embedding.shape[0]}, the embedding's rows"
        )
    return embedding.shape[0]


def _gemma3(source: Gguf, config: dict[str, Any]) -> dict[str, Any]:
    layers, heads = config["num_hidden_layers"], config["num_attention_heads"]
    scale = config["hidden_size"] // heads if layers == GEMMA3_27B_LAYERS else config["head_dim"]
    del config["hidden_act"]
    return config | {
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": scale,
        "rope_local_base_freq": number(source.get("gemma3.rope.freq_base_swa", float) or GEMMA3_LOCAL_THETA),
        "sliding_window": source.need("gemma3.attention.sliding_window", int),
        "layer_types": _layer_types(source, layers),
        "attn_logit_softcapping": source.get("gemma3.attn_logit_softcapping", float),
        "final_logit_softcapping": source.get("gemma3.final_logit_softcapping", float),
    }


def _layer_types(source: Gguf, layers: int) -> list[str]:
    """Which layers slide: a flag for each layer, or every n-th does not."""
    key = "gemma3.attention.sliding_window_pattern"
    pattern = source.metadata.get(key)
    if pattern is not None and type(pattern) is not int:
        flags = source.numbers(key)
        if flags is None or len(flags) != layers:
            raise ValueError(f"{source.file}: {key}: got {0 if flags is None else len(flags)} flags, expected {layers}")
        return [SLIDING if flag else FULL for flag in flags]
    every = pattern or GEMMA3_PATTERN
    return [SLIDING if (i + 1) % every else FULL for i in range(layers)]
