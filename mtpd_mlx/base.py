"""The base adapter: the one place that knows how mlx-lm lays out a model family.

Everything else sees a `Base`: embedding, trunk (hidden state before the final norm), final norm, output head, caches and
the decoder-block type. A family is added by naming its mlx-lm module in FAMILIES, once tests/test_base.py covers it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtpd_mlx.mlx_runtime import mx, nn

FAMILIES = ("llama", "qwen2", "qwen3")  # mlx-lm modules; mistral checkpoints are loaded by its llama module


@dataclass
class Base:
    """A causal attention language model. Shapes: tokens int [B, T], hidden [B, T, d], logits [B, T, V].

    `block_type` is remembered so that new_block() works where the layers were left out (load_base with ends_only).
    """

    model: nn.Module
    config: dict[str, Any]
    path: Path | None
    block_type: Any = None
    grad_checkpoint: bool = False  # in training, recompute blocks in the backward pass

    def __post_init__(self) -> None:
        if self.block_type is None:
            self.block_type = type(self.layers[-1])

    @property
    def hidden_size(self) -> int:
        return self.model.args.hidden_size

    @property
    def vocab_size(self) -> int:
        return self.model.args.vocab_size

    @property
    def layers(self) -> list[nn.Module]:
        return self.model.model.layers

    @property
    def context_length(self) -> int:
        return int(self.config.get("max_position_embeddings") or 2048)

    @property
    def dtype(self) -> mx.Dtype:
        return self.norm_weight.dtype

    @property
    def norm_weight(self) -> mx.array:
        return self.model.model.norm.weight

    @property
    def is_quantized(self) -> bool:
        return "quantization" in self.config

    @property
    def ends_only(self) -> bool:
        """True when only embedding, final norm and output head are there."""
        return not self.layers

    def embed(self, tokens: mx.array) -> mx.array:
        return self.model.model.embed_tokens(tokens)

    def trunk(self, tokens: mx.array, cache: list[Any] | None = None) -> mx.array:
        """hidden_prenorm: the residual stream after the last block, before the final norm. ValueError without the layers."""
        if self.ends_only:
            raise ValueError("this base was loaded without its layers (ends_only): it has no hidden states")
        from mlx_lm.models.base import create_attention_mask

        hidden = self.embed(tokens)
        caches = cache or [None] * len(self.layers)
        mask = create_attention_mask(hidden, caches[0])
        for layer, layer_cache in zip(self.layers, caches, strict=True):
            run = recomputed(layer) if self.grad_checkpoint and layer_cache is None else layer
            hidden = run(hidden, mask, layer_cache)
        return hidden

    def norm(self, hidden: mx.array) -> mx.array:
        return self.model.model.norm(hidden)

    @property
    def output_module(self) -> nn.Module:
        """What holds the output head's matrix: the embedding (tied) or lm_head."""
        return self.model.model.embed_tokens if self.model.args.tie_word_embeddings else self.model.lm_head

    def logits(self, hidden_postnorm: mx.array, weight: mx.array | None = None) -> mx.array:
        """`weight` [V, d] stands in for the output head's own matrix, so that a loss can be differentiated by it."""
        if weight is not None:
            return hidden_postnorm @ weight.T
        if self.model.args.tie_word_embeddings:
            return self.model.model.embed_tokens.as_linear(hidden_postnorm)
        return self.model.lm_head(hidden_postnorm)

    def draft_head(self, tokens: mx.array) -> Callable[[mx.array], mx.array]:
        """The output head's rows `tokens` [D] alone, gathered once: hidden_postnorm [.., d] -> logits [.., D]."""
        module = self.output_module
        rows = {name: module[name][tokens] for name in ("weight", "scales", "biases") if name in module}
        if "scales" in rows:
            settings = {"group_size": module.group_size, "bits": module.bits, "mode": module.mode}
            return lambda hidden: mx.quantized_matmul(hidden, *_packed(rows), transpose=True, **settings)
        return lambda hidden: hidden @ rows["weight"].T

    def make_cache(self, blocks: int | None = None) -> list[Any]:
        """One growing KV cache per block (of the base, or of `blocks` heads)."""
        from mlx_lm.models.cache import KVCache

        return [KVCache() for _ in range(len(self.layers) if blocks is None else blocks)]

    def new_block(self) -> nn.Module:
        """A decoder block of the base's own type, unquantised, freshly initialised."""
        return self.block_type(self.model.args)


def _packed(rows: dict[str, mx.array]) -> tuple[mx.array, mx.array, mx.array | None]:
    return rows["weight"], rows["scales"], rows.get("biases")


def recomputed(block: nn.Module) -> Callable[..., mx.array]:
    """The block, keeping only its input for the backward pass (gradient checkpointing)."""

    def call(hidden: mx.array, mask: Any, cache: Any = None) -> mx.array:
        def inner(params: dict, hidden: mx.array) -> mx.array:
            block.update(params)
            return block(hidden, mask, cache)

        return mx.checkpoint(inner)(block.trainable_parameters(), hidden)

    return call


def resolve_model(model: str, revision: str | None = None) -> Path:
    """A local folder, or the local snapshot of a hub id (downloaded when needed). ValueError in one line otherwise."""
    path = Path(model).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ValueError(f"model folder {model}: no config.json in it")
        return path
    if model.startswith((".", "/", "~")) or model.count("/") != 1:
        raise ValueError(f"model {model}: no such folder, and not a hub id of the form owner/name")
    from huggingface_hub import snapshot_download

    try:
        patterns = ["*.json", "model*.safetensors", "tokenizer*", "*.jinja"]
        return Path(snapshot_download(model, revision=revision, allow_patterns=patterns))
    except Exception as error:  # the hub client raises many kinds; the user needs one line
        raise ValueError(f"model {model}: {type(error).__name__}: {str(error).strip().splitlines()[0]}") from error


def check_supported(config: dict[str, Any]) -> None:
    """Refuses, in one line, what the adapter cannot drive correctly."""
    family = {"mistral": "llama"}.get(config.get("model_type", ""), config.get("model_type"))
    if family not in FAMILIES:
        known = ", ".join((*FAMILIES, "mistral"))
        raise ValueError(f"model_type {config.get('model_type')!r} is not supported; supported: {known}")
    windows = config.get("sliding_window") is not None and config.get("use_sliding_window", family == "llama")
    kinds = set(config.get("layer_types") or ["full_attention"])
    if kinds != {"full_attention"} or (windows and "layer_types" not in config):
        raise ValueError(f"{config['model_type']} with sliding-window attention is not supported (its cache cannot rewind)")


def load_base(model: str, dequantize: bool = False, dtype: mx.Dtype | None = None, ends_only: bool = False) -> Base:
    """Loads a base through mlx-lm; `dequantize` unpacks quantised layers, `dtype` casts floating-point weights.

    `ends_only` leaves the decoder layers out before anything is read: embedding, final norm and output head are enough
    where hidden states come from a cache.
    """
    from mlx_lm.utils import dequantize_model, load_config, load_model

    path = resolve_model(model)
    try:
        check_supported(load_config(path))
        network, config = load_model(path, lazy=ends_only)
        block_type = type(network.model.layers[-1])
        if ends_only:
            network.model.layers = []
            mx.eval(network.parameters())
    except ValueError as error:
        raise ValueError(f"model {model}: {str(error).strip().splitlines()[0]}") from error
    except (OSError, RuntimeError, KeyError) as error:
        raise ValueError(f"model {model}: cannot load: {str(error).strip().splitlines()[0]}") from error
    if dequantize and "quantization" in config:
        network = dequantize_model(network)
        config = {k: v for k, v in config.items() if k not in ("quantization", "quantization_config")}
    if dtype is not None:
        network.set_dtype(dtype)
    network.eval()
    mx.eval(network.parameters())
    return Base(network, config, path, block_type)


def new_base(config: dict[str, Any], seed: int) -> Base:
    """A randomly initialised base (GPT-2 style: normal 0.02, residual outputs scaled by 1/sqrt(2 L))."""
    from mlx.utils import tree_flatten, tree_unflatten
    from mlx_lm.utils import _get_classes

    check_supported(config)
    model_class, args_class = _get_classes(config)
    network = model_class(args_class.from_dict(config))
    mx.random.seed(seed)
    residual = (2 * network.args.num_hidden_layers) ** -0.5
    weights: list[tuple[str, mx.array]] = []
    flat: Any = tree_flatten(network.parameters())
    for name, w in flat:
        if w.ndim == 2:
            scale = 0.02 * (residual if name.endswith(("o_proj.weight", "down_proj.weight")) else 1.0)
            w = mx.random.normal(w.shape, scale=scale)
        weights.append((name, w))
    network.update(tree_unflatten(weights))
    mx.eval(network.parameters())
    return Base(network, dict(config), None)
