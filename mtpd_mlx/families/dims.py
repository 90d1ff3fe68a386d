"""`Dims`: the numbers and switches that a decoder and its heads are built from, on MLX and in ONNX graphs alike.
Called by everything that builds or checks a model."""

import math
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Geometry:
    """The attention of one kind of layer, where layers differ. own_values: values have a projection of their own; else they are
    the keys before norm and rotation."""

    head_dim: int
    num_kv_heads: int
    rotary_dim: int
    own_values: bool = True


@dataclass(frozen=True)
class Layer:
    """One decoder block. window: positions it may look back at, itself included (None: all). rope: "global", "local" or
    "none". experts: its MLP is a mixture. mixer: "attention", the kind of Dims.recurrent,
    "mlp" where a block is no more than that, "pair" for a head of such a family. geometry: None where it is that of
    Dims."""

    window: int | None = None
    rope: str = "global"
    experts: bool = False
    mixer: str = "attention"
    geometry: Geometry | None = None


HELD = 96  # positions that recurrent state and windows can be taken back, once so many have been read
WINDOW_STEP = 256  # positions that the cache of a window grows by, and reads between two moves of what it keeps
MARKS = 4  # states of whole texts that are kept for longer ways back, the newest


@dataclass(frozen=True)
class Recurrent:
    """The layers of a hybrid model that are no attention: a causal convolution of `kernel` positions over `channels`, and, but
    for "conv", a recurrence behind it whose state is [heads, value, key] numbers in float32.

    kind: "conv" (LFM2's short convolution), "delta" (gated delta net), "joined_delta" (the same with two projections), "mamba"
    (Mamba-2). groups: of heads that share a key. bias: of the projections; conv_bias: of the convolution. step_limit: least and
    largest time step of Mamba-2.
    """

    kind: str
    kernel: int
    channels: int
    heads: int = 0
    value: int = 0
    key: int = 0
    groups: int = 0
    bias: bool = False
    conv_bias: bool = False
    step_limit: tuple[float, float] = (0.0, math.inf)
    place: str = "mamba"  # what a block calls a Mamba-2 layer

    @property
    def state_numbers(self) -> int:
        return self.heads * self.value * self.key

    @property
    def window_numbers(self) -> int:
        """What the convolution keeps of the positions before."""
        return (self.kernel - 1) * self.channels


@dataclass(frozen=True)
class Experts:
    """A mixture of `count` SwiGLU experts of `size`, of which `chosen` work on a token. normalized: the chosen ones' weights
    sum to one. path, gate, names: where a checkpoint keeps them (`{path}.{gate}`, `{path}.experts.{e}.{gate, up, down}`);
    stacked, parts: where mlx-lm does (`{path}.{stacked}.{parts}`). fused: Hugging Face has all experts in two tensors,
    `{path}.{joined}`, gate and up in the first, in turn. names and parts of two: experts have no gate (up and down).
    bias: of the router and of every expert. clip: (alpha, limit) of gpt-oss's activation in place of SwiGLU,
    (up + 1) gate sigmoid(alpha gate), the gate cut at limit and up at -limit and limit."""

    count: int
    chosen: int
    size: int
    normalized: bool
    path: str
    names: tuple[str, ...]
    gate: str = "gate"
    stacked: str = "switch_mlp"
    parts: tuple[str, ...] = ("gate_proj", "up_proj", "down_proj")
    fused: bool = False
    joined: tuple[str, str] = ("experts.gate_up_proj", "experts.down_proj")
    bias: bool = False
    clip: tuple[float, float] | None = None
    shared: int = 0  # size of a dense MLP that works on every token beside them, `{path}.{shared_name}`
    shared_name: str = "shared_experts"
    shared_gate: bool = False  # it is multiplied by sigmoid(`{path}.{shared_name}_gate`)
    sigmoid: bool = False  # scores are sigmoids; `{path}.{gate}.e_score_correction_bias` helps to choose (DeepSeek-V3, GLM-4.5)
    correction: str = ""  # its name where a family has another for it, beside the gate
    parallel: bool = False  # beside a dense MLP, with norms of its own (Gemma 4)
    beside: bool = False  # beside a dense MLP that reads and adds to the same states (Granite 4)
    groups: int = 1  # of as many experts, of which the best `chosen_groups` may work (GLM-4.5)
    chosen_groups: int = 1
    scaling: float = 1.0  # their sum is multiplied by it, where scores are sigmoids
    latent: int | None = None  # they read and write projections of this width (Nemotron 3 Super)


@dataclass(frozen=True)
class Dims:
    """Names follow Hugging Face configs. `head_layer` is the block type of MTP heads: full attention, whatever the base's
    own layers look back at."""

    model_type: str
    hidden_size: int
    num_layers: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    rms_norm_eps: float
    rope_theta: float
    rope_scaling: dict[str, Any] | None
    context_length: int
    tied: bool
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    qk_norm: str | None  # "head": per head; "all": over all heads of a projection
    quantization: dict[str, Any] | None
    layers: tuple[Layer, ...]
    head_layer: Layer
    rotary_dim: int
    local_theta: float | None
    norms: str  # "pre", "post" (of the branches' outputs) or "both"
    norm_offset: float  # added to the stored weights of the family's norms (Gemma: 1); never to hnorm, enorm, post_norm
    activation: str  # "silu" or "gelu_tanh"
    fused: bool  # the checkpoint holds qkv_proj and gate_up_proj
    attention_scale: float
    embedding_scale: float
    residual_scale: float
    logits_scale: float
    attention_softcap: float | None
    logits_softcap: float | None
    experts: Experts | None
    query_growth: tuple[float, int] | None  # (beta, n): queries times 1 + beta log(1 + floor(position / n))
    value_norm: bool = False  # values are normalised too, without weights
    layer_scale: bool = False  # each block's output is multiplied by a number, `layer_scalar`
    sinks: bool = False  # each head has a score that takes part in the softmax and stands for no position
    gated: bool = False  # attention's outputs are multiplied by a sigmoid; q_proj holds each head's query and its gate
    recurrent: Recurrent | None = None  # of the layers whose mixer is not attention

    @property
    def attention_layers(self) -> int:
        return sum(layer.mixer == "attention" for layer in self.layers)

    @property
    def recurrent_layers(self) -> int:
        return sum(layer.mixer not in ("attention", "mlp") for layer in self.layers)

    @property
    def paired(self) -> bool:
        """Blocks hold one branch each, attention, a recurrence or an MLP; a head is two of them."""
        return any(layer.mixer == "mlp" for layer in self.layers)

    @property
    def last_mlp(self) -> int:
        """Where blocks hold one branch each, the last of the MLPs: heads have one like it."""
        return max(i for i, layer in enumerate(self.layers) if layer.mixer == "mlp")

    @property
    def last_attention(self) -> int:
        """The layer that heads are blocks like."""
        return max(i for i, layer in enumerate(self.layers) if layer.mixer == "attention")

    def geometry(self, layer: Layer) -> Geometry:
        """The attention of a layer."""
        return layer.geometry or Geometry(self.head_dim, self.num_kv_heads, self.rotary_dim)

    def as_if_all(self, layer: Layer) -> "Dims":
        """Those of a model whose attention is that of `layer` everywhere."""
        own = self.geometry(layer)
        return replace(self, head_dim=own.head_dim, num_kv_heads=own.num_kv_heads, rotary_dim=own.rotary_dim)

    def offset_of(self, name: str) -> float:
        """What is added to the stored tensor `name`: the norms' offset, the only place that applies it."""
        parts = name.removesuffix(".weight").split(".")
        ours = parts[-1] in ("hnorm", "enorm", "post_norm")
        return self.norm_offset if parts[-1].endswith("norm") and not ours else 0.0
