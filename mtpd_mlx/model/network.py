"""`make_network`, `model_classes`, `unpacked`: mlx-lm's module of a base, and the tensors in it.
Called by model/base.py and model/new_base.py."""

import importlib
from typing import Any

from mtpd_mlx.checkpoints.shipped.layouts import is_shipped
from mtpd_mlx.families.config import mlx_arguments
from mtpd_mlx.families.multimodal import text_name
from mtpd_mlx.families.stored import StoredBase
from mtpd_mlx.model.compute import dtype_of
from mtpd_mlx.model.fused_experts import as_mlx_lm_expects
from mtpd_mlx.model.runtime import mx, nn
from mtpd_mlx.options.base import AUTO


def model_classes(config: dict[str, Any]) -> tuple[Any, Any]:
    """(model, arguments): mlx-lm's classes for a config.json. ValueError for a model_type that it does not have.

    Uses mlx_lm.utils._get_classes, which is private: mlx-lm has no public way. Broken by another name or another result of it.
    """
    from mlx_lm.utils import _get_classes

    model_class, args_class = _get_classes(config)
    if config["model_type"] == "qwen3_5":  # the language model, without what makes it multimodal
        module = importlib.import_module(model_class.__module__)
        return module.TextModel, module.TextModelArgs
    return model_class, args_class


def without_shipped_heads(model_class: Any, args_class: Any) -> tuple[Any, Any]:
    """The mlx-lm classes of a language model, such that whatever else is in its checkpoint is left aside: MTP heads (mtpd
    import-heads reads them), the other parts of a multimodal model."""

    class Trimmed(model_class):
        def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
            named = {text_name(name): w for name, w in weights.items()}
            kept = {n: w for n, w in named.items() if n is not None and not is_shipped(n, self.args.num_hidden_layers)}
            kept = as_mlx_lm_expects(kept, self.args.model_type)
            return super().sanitize(kept) if hasattr(model_class, "sanitize") else kept

    return Trimmed, args_class


def make_network(stored: StoredBase) -> nn.Module:
    """mlx-lm's module with the tensors of `stored` and no others, not yet read. (mlx_lm.load_model takes every file of a
    folder, and believes config.json where the tensors say otherwise.)"""
    from mlx_lm.utils import infer_quant_config

    arguments = stored.config | mlx_arguments(stored.config, stored.dims)
    model_class, args_class = without_shipped_heads(*model_classes(arguments))
    network = model_class(args_class.from_dict(arguments))
    weights: dict[str, mx.array] = {}
    for file in stored.files:
        arrays = mx.load(str(file), format="safetensors")
        assert isinstance(arrays, dict)
        weights |= arrays
    weights = network.sanitize(weights)

    def packing(path: str, module: nn.Module) -> bool | dict[str, Any]:
        packed = hasattr(module, "to_quantized") and f"{path}.scales" in weights
        return infer_quant_config(path, module, weights) if packed else False

    if stored.dims.quantization is not None:
        nn.quantize(network, class_predicate=packing)
    network.load_weights(list(weights.items()))
    return network


def unpacked(network: nn.Module, asked: mx.Dtype | None = None) -> nn.Module:
    """The network with floating-point matrices in place of quantised ones: in float32 where that is computed in or `asked` for,
    so that they are what the integers stand for; elsewhere in the type of their scales."""
    from mlx_lm.utils import dequantize_model

    for _, module in network.named_modules():
        if "scales" in module and "biases" in module:
            kind = asked if asked is not None and asked == mx.float32 else dtype_of(AUTO, module.scales.dtype)
            module.scales, module.biases = module.scales.astype(kind), module.biases.astype(kind)
    return dequantize_model(network)
