"""`Base`, `load_base`: the one place that knows how mlx-lm lays out a model.
Called by everything that runs a model on MLX.

Everything else sees a `Base`: embedding, trunk (hidden state before the final norm), final norm, output head, caches and
the decoder-block type. A family is added in families/table.py, once tests/families covers it.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mtpd_mlx.checkpoints.adapter_format import fingerprint_model, read_adapter
from mtpd_mlx.families.config import read_dims
from mtpd_mlx.families.dims import Dims, Layer
from mtpd_mlx.families.stored import read_base
from mtpd_mlx.families.table import FAMILIES, Names
from mtpd_mlx.hub.pull import resolve_model
from mtpd_mlx.model.adapters import apply_adapter
from mtpd_mlx.model.blocks import adapt_block, attention_block, call_block, make_mask, needs_arrays, recomputed
from mtpd_mlx.model.compute import cast
from mtpd_mlx.model.network import make_network, unpacked
from mtpd_mlx.model.recurrent.mixers import adopt, is_stateless, mixer_of, new_batch_cache, new_cache
from mtpd_mlx.model.recurrent.pairs import Stateless
from mtpd_mlx.model.runtime import kernel_cache, mx, nn, on_cpu, on_cuda
from mtpd_mlx.model.window_cache import WindowCache

logger = logging.getLogger(__name__)


@dataclass
class Base:
    """A causal attention language model. Shapes: tokens int [B, T], hidden [B, T, d], logits [B, T, V].

    `block_type` is remembered so that new_block() works where the layers were left out (load_base with ends_only).
    """

    model: nn.Module
    config: dict[str, Any]
    path: Path | None
    block_type: Any = None
    adapter: Path | None = None  # what was folded into the weights
    grad_checkpoint: bool = False  # in training, recompute blocks in the backward pass

    def __post_init__(self) -> None:
        self.dims: Dims = read_dims(self.config, tied="lm_head" not in self.model)
        if self.block_type is None:
            self.block_type = type(self.layers[-1])
        for block, layer in zip(self.layers, self.dims.layers, strict=False):
            adopt(block, self.dims.recurrent)
            adapt_block(block, self.dims, layer)

    @property
    def hidden_size(self) -> int:
        return self.dims.hidden_size

    @property
    def vocab_size(self) -> int:
        return self.dims.vocab_size

    @property
    def fingerprint(self) -> str:
        """The identity of the weights; ValueError where the base has no folder."""
        if self.path is None:
            raise ValueError("this base has no folder: it has no fingerprint")
        return fingerprint_model(self.path, self.adapter)

    @property
    def names(self) -> Names:
        return FAMILIES[self.dims.model_type].names

    @property
    def inner(self) -> nn.Module:
        """Embedding, blocks and final norm."""
        return self.model[self.names.inner]

    @property
    def embedding(self) -> nn.Module:
        return self.inner[self.names.embedding]

    @property
    def layers(self) -> list[nn.Module]:
        return self.inner["layers"]

    @property
    def context_length(self) -> int:
        return self.dims.context_length

    def check_length(self, length: int) -> None:
        """ValueError where rows of text are longer than the base's context."""
        if length > self.context_length:
            raise ValueError(f"--max-seq-length: got {length}, expected at most {self.context_length}, the base's context")

    @property
    def dtype(self) -> mx.Dtype:
        return self.norm_weight.dtype

    @property
    def norm_weight(self) -> mx.array:
        return self.inner[self.names.norm].weight

    @property
    def is_quantized(self) -> bool:
        return "quantization" in self.config

    @property
    def ends_only(self) -> bool:
        """True when only embedding, final norm and output head are there."""
        return not self.layers

    def embed(self, tokens: mx.array) -> mx.array:
        rows, scale = self.embedding(tokens), self.dims.embedding_scale
        return rows if scale == 1.0 else rows * mx.array(scale, rows.dtype)

    def trunk(self, tokens: mx.array, cache: list[Any] | None = None) -> mx.array:
        """hidden_prenorm: the residual stream after the last block, before the final norm. ValueError without the layers."""
        if self.ends_only:
            raise ValueError("this base was loaded without its layers (ends_only): it has no hidden states")
        hidden = self.embed(tokens)
        caches = cache or [None] * len(self.layers)
        masks: dict[tuple[str, int | None], Any] = {}
        for block, layer, block_cache in zip(self.layers, self.dims.layers, caches, strict=True):
            kind = layer.mixer, layer.window
            if kind not in masks:
                masks[kind] = self._mask(tokens.shape[1], layer, block_cache)
            mask = masks[kind]
            if self.grad_checkpoint and block_cache is None:
                hidden = recomputed(block)(hidden, mask)
            else:
                hidden = call_block(block, hidden, mask, block_cache)
        return hidden

    def run_block(self, index: int, hidden: mx.array, cache: Any = None) -> mx.array:
        """Layer `index` alone over new rows [B, T, d], with the window of its own."""
        mask = self._mask(hidden.shape[1], self.dims.layers[index], cache)
        return call_block(self.layers[index], hidden, mask, cache)

    def _mask(self, length: int, layer: Layer, cache: Any) -> Any:
        """Of `length` new rows: for attention what they may look at, for a recurrence which rows are padding, if any."""
        if layer.mixer != "attention":
            return None if cache is None else cache.make_mask(length)
        return make_mask(length, cache, layer.window, needs_arrays(self.block_type))

    def norm(self, hidden: mx.array) -> mx.array:
        return self.inner[self.names.norm](hidden)

    @property
    def output_module(self) -> nn.Module:
        """What holds the output head's matrix: the embedding (tied) or lm_head."""
        return self.model.lm_head if "lm_head" in self.model else self.embedding

    def logits(self, hidden_postnorm: mx.array, weight: mx.array | None = None) -> mx.array:
        """`weight` [V, d] stands in for the output head's own matrix, so that a loss can be differentiated by it."""
        if weight is not None:
            return self._finish(hidden_postnorm @ weight.T)
        module = self.output_module
        return self._finish(module(hidden_postnorm) if "lm_head" in self.model else module.as_linear(hidden_postnorm))

    def _finish(self, logits: mx.array) -> mx.array:
        """What a family does to its logits (Granite scales, Gemma 2 caps them)."""
        if self.dims.logits_scale != 1.0:
            logits = logits * self.dims.logits_scale
        cap = self.dims.logits_softcap
        return logits if cap is None else mx.tanh(logits / cap) * cap

    def draft_head(self, tokens: mx.array) -> Callable[[mx.array], mx.array]:
        """The output head's rows `tokens` [D] alone, gathered once: hidden_postnorm [.., d] -> logits [.., D]."""
        module = self.output_module
        rows = {name: module[name][tokens] for name in ("weight", "scales", "biases") if name in module}
        if "scales" in rows:
            settings = {"group_size": module.group_size, "bits": module.bits, "mode": module.mode}
            return lambda hidden: self._finish(mx.quantized_matmul(hidden, *_packed(rows), transpose=True, **settings))
        return lambda hidden: self._finish(hidden @ rows["weight"].T)

    def make_cache(self, blocks: int | None = None, windows: bool = False) -> list[Any]:
        """One growing cache per block of the base: of keys and values, or of recurrent state. Or of `blocks` heads. `windows`:
        sliding layers keep their window and a few positions more, not the whole text."""
        from mlx_lm.models.cache import KVCache

        if blocks is not None:
            return [KVCache() for _ in range(blocks)]

        def attending(window: int | None) -> Callable[[], Any]:
            return partial(WindowCache, window) if windows and window else KVCache

        pairs = zip(self.layers, self.dims.layers, strict=False)
        return [_cache_of(block, attending(layer.window), new_cache) for block, layer in pairs]

    def make_batch_cache(self, padding: list[int]) -> list[Any]:
        """The caches of a batch whose rows are padded on the left by so many positions each."""
        from mlx_lm.models.cache import BatchKVCache

        def recurrent(mixer: Any) -> Any:
            return new_batch_cache(mixer, padding)

        return [_cache_of(block, lambda: BatchKVCache(padding), recurrent) for block in self.layers]

    def new_block(self) -> nn.Module:
        """A decoder block of the base's own type, unquantised, freshly initialised, attending to all positions."""
        block = attention_block(self.block_type, self.model.args, self.dims)
        adapt_block(block, self.dims, self.dims.head_layer)
        return block


def _cache_of(block: nn.Module, attending: Callable[[], Any], recurrent: Callable[[Any], Any]) -> Any:
    if (mixer := mixer_of(block)) is not None:
        return recurrent(mixer)
    return Stateless() if is_stateless(block) else attending()


def _packed(rows: dict[str, mx.array]) -> tuple[mx.array, mx.array, mx.array | None]:
    return rows["weight"], rows["scales"], rows.get("biases")


def check_supported(config: dict[str, Any]) -> None:
    """Refuses, in one line, what the adapter cannot drive correctly."""
    read_dims(config)


def load_base(
    model: str,
    *,
    dequantize: bool | None = False,
    dtype: mx.Dtype | None = None,
    ends_only: bool = False,
    adapter: Path | None = None,
) -> Base:
    """Loads a base into mlx-lm's module. `dequantize` unpacks quantised layers (None: on a CPU, slow with them), `dtype`
    casts floating-point weights, `adapter` is folded in.

    `ends_only` leaves the decoder layers out before anything is read: embedding, final norm and output head are enough
    where hidden states come from a cache.
    """
    path = resolve_model(model)
    if adapter is not None and ends_only and not read_adapter(adapter).only_layers:
        raise ValueError(
            f"--adapter-path {adapter}: changes embedding, final norm or output head, which --cache "
            "does not support; fuse it (mlx_lm.fuse)"
        )
    try:
        stored = read_base(path)
        stored.say_remarks()
        config, network = stored.config, make_network(stored)
        inner = network[FAMILIES[stored.dims.model_type].names.inner]
        block_type = type(inner["layers"][-1])
        if ends_only:
            inner["layers"] = []
        mx.eval(network.parameters())
    except ValueError as error:
        raise ValueError(f"model {model}: {_in_one_line(error)}") from error
    except (OSError, RuntimeError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"model {model}: cannot load: {_in_one_line(error)}") from error
    if adapter is not None and not ends_only:
        apply_adapter(network, adapter)
    if (on_cpu() if dequantize is None else dequantize) and "quantization" in config:
        network = unpacked(network, dtype)
        config = {k: v for k, v in config.items() if k not in ("quantization", "quantization_config")}
    if dtype is not None:
        cast(network, dtype)
    network.eval()
    mx.eval(network.parameters())
    return Base(network, config, path, block_type, adapter)


def _in_one_line(error: Exception, most: int = 300) -> str:
    """MLX lists the parameters that a model lacks one a line: as many of them as there is room for."""
    text = " ".join((str(error).strip() or repr(error)).replace(",\n", ", ").split())
    return text if len(text) <= most else f"{text[:most].rpartition(' ')[0]} ..."


def say_if_slow(base: Base) -> None:
    """One line where a base will run packed on a CPU (said, not changed, since floating point takes 4 to 8 times the memory),
    and where CUDA kernels are still to be compiled."""
    if base.is_quantized and on_cpu():
        logger.warning("this base is quantised, which CPUs compute slowly: --dequantize is several times as fast")
    if on_cuda() and not any(Path(kernel_cache(0)).glob("*")):
        logger.info("MLX compiles its CUDA kernels first, which takes a minute or three here once")
