"""`FAMILIES`: the model families. To add one: a line here, its mlx-lm module, and a reference in tools/.
Called by families/config.py and everything that asks which families there are."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Names:
    """What a family calls the parts of a model. norms: the two of a block (None: by Family.norms)."""

    inner: str = "model"
    embedding: str = "embed_tokens"
    norm: str = "norm"
    norms: tuple[str, ...] | None = None
    attention: str = "self_attn"
    output: str = "o_proj"
    query_norm: str = "q_norm"
    key_norm: str = "k_norm"
    mlp: str = "mlp"
    gate: str = "gate_proj"
    up: str = "up_proj"
    down: str = "down_proj"
    joined_mlp: tuple[str, str, str] | None = None  # its name, gate and up in one matrix, and down, as Hugging Face stores it


@dataclass(frozen=True)
class Family:
    """module: of mlx_lm.models. windows: "none", "all" layers, or by layer "types"; switched: only with use_sliding_window.
    tied, theta, eps, window: what transformers assumes where config.json does not say. biases: which of attention_bias and
    mlp_bias the family knows; o_bias: attention has biases in every case. sinks,
    value_norm, layer_scale: as in Dims."""

    module: str
    windows: str = "none"
    switched: bool = False
    tied: bool = False
    theta: float = 10000.0
    eps: float = 1e-6
    window: int | None = None
    biases: tuple[str, ...] = ()
    qkv_bias: bool = False
    o_bias: bool = False
    biased_output: bool = True  # attention_bias is of the output projection too
    optional_norms: bool = False  # queries and keys are normalised only with use_qk_norm
    qk_norm: str | None = None
    norms: str = "pre"
    norm_offset: float = 0.0
    activation: str = "silu"
    fused: bool = False
    exceeds_float16: bool = False  # hidden states of published models exceed 65,504, where float16 ends
    sinks: bool = False
    value_norm: bool = False
    layer_scale: bool = False
    head_dim: bool = True  # config.json may set head_dim apart from hidden_size / num_attention_heads
    gated: bool = False  # attention's outputs are gated, by queries of twice the width
    names: Names = Names()
    onnx: bool = True  # mtpd export can express it


LFM2 = Names(
    norm="embedding_norm",
    norms=("operator_norm", "ffn_norm"),
    output="out_proj",
    query_norm="q_layernorm",
    key_norm="k_layernorm",
    mlp="feed_forward",
    gate="w1",
    up="w3",
    down="w2",
)
GEMMA4 = Family(
    "gemma4_text",
    windows="types",
    window=512,
    tied=True,
    theta=1e6,
    qk_norm="head",
    norms="both",
    activation="gelu_tanh",
    value_norm=True,
    layer_scale=True,
)
NEMOTRON = Names(inner="backbone", embedding="embeddings", norm="norm_f", norms=("norm",), attention="mixer", mlp="mixer")
GRANITE = Names(joined_mlp=("shared_mlp", "input_linear", "output_linear"))
FAMILIES: dict[str, Family] = {
    "llama": Family("llama", biases=("attention_bias", "mlp_bias")),
    "mistral": Family("llama", windows="all", window=4096),
    "ministral": Family("llama", windows="types", window=4096),
    "ministral3": Family("ministral3", theta=1e6, eps=1e-5, windows="all"),
    "qwen2": Family("qwen2", windows="types", switched=True, qkv_bias=True, head_dim=False),
    "mimo": Family("qwen2", qkv_bias=True, head_dim=False),
    "qwen3": Family("qwen3", windows="types", switched=True, qk_norm="head"),
    "smollm3": Family(
        "smollm3", windows="types", switched=True, tied=True, theta=2e6, biases=("attention_bias", "mlp_bias"), head_dim=False
    ),
    "olmo2": Family("olmo2", norms="post", qk_norm="all", eps=1e-5, biases=("attention_bias",), head_dim=False),
    "olmo3": Family(
        "olmo3",
        windows="types",
        window=4096,
        norms="post",
        qk_norm="all",
        eps=1e-5,
        theta=5e5,
        biases=("attention_bias",),
        head_dim=False,
    ),
    "granite": Family("granite", biases=("attention_bias", "mlp_bias"), head_dim=False),
    "phi3": Family("phi3", windows="all", eps=1e-5, fused=True, head_dim=False),
    "gemma2": Family("gemma2", windows="types", window=4096, tied=True, norms="both", norm_offset=1.0, activation="gelu_tanh"),
    "gemma3_text": Family(
        "gemma3_text",
        windows="types",
        window=4096,
        tied=True,
        theta=1e6,
        qk_norm="head",
        norms="both",
        norm_offset=1.0,
        activation="gelu_tanh",
        exceeds_float16=True,
    ),
    "gemma4_text": GEMMA4,
    "gemma4_unified_text": replace(GEMMA4, window=1024),
    "qwen3_moe": Family("qwen3_moe", windows="all", switched=True, qk_norm="head"),
    "glm4_moe": Family(
        "glm4_moe", eps=1e-5, biases=("attention_bias",), qk_norm="head", optional_norms=True, biased_output=False
    ),
    "mixtral": Family("mixtral", windows="all", eps=1e-5, theta=1e6, head_dim=False),
    "gpt_oss": Family(
        "gpt_oss",
        windows="types",
        window=128,
        eps=1e-5,
        theta=150000.0,
        biases=("attention_bias",),
        qkv_bias=True,
        o_bias=True,
        exceeds_float16=True,
        sinks=True,
    ),
    "qwen3_5_text": Family("qwen3_5", qk_norm="head", gated=True),
    "qwen3_5_moe_text": Family("qwen3_5", qk_norm="head", gated=True),
    "qwen3_next": Family("qwen3_next", qk_norm="head", gated=True),
    "nemotron_h": Family(
        "nemotron_h", eps=1e-5, biases=("attention_bias", "mlp_bias"), names=NEMOTRON, activation="relu2", onnx=False
    ),
    "granitemoehybrid": Family("granitemoehybrid", biases=("attention_bias",), head_dim=False, names=GRANITE),
    "lfm2_moe": Family("lfm2_moe", tied=True, theta=1e6, eps=1e-5, qk_norm="head", head_dim=False, names=LFM2),
    "lfm2": Family("lfm2", tied=True, theta=1e6, eps=1e-5, qk_norm="head", head_dim=False, names=LFM2),
}
ACTIVATIONS = {"silu": ("silu", "swish"), "gelu_tanh": ("gelu_pytorch_tanh",), "relu2": ("relu2",)}  # names in config.json


def check_float16(model_type: str, asked: str, instead: str) -> None:
    """ValueError in one line where a family's hidden states have no room in float16. `asked`: the option that wants it."""
    if FAMILIES[model_type].exceeds_float16:
        raise ValueError(f"{asked}: hidden states of {model_type} exceed 65,504, where float16 ends; use {instead}")
